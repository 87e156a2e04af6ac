"""The native operator of the logistic mixture: the C++ extension as a differentiable function."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .. import _extension
from .dispatch import Grads, register_op


def _forward(x: Tensor, params: Tensor, *options: Any) -> tuple[Tensor, Tensor]:
    """(log_prob (B, H, W), state (B, 4, H, W)) of float32 or float64 tensors.

    The state of a pixel is two sums over components and atoms, each with its maximum. With it the
    backward evaluates each component once and writes each gradient once, already times the gradient
    from above. Keeping unit gradients from the forward would save the second evaluation. But they
    need a second tensor of the size of params, which takes longer to write and read.
    """
    log_prob, state = outputs = _outputs(x, params)
    threads = torch.get_num_threads()
    _extension.extension().logistic_mixture(x, params, state, *options, threads, log_prob=log_prob)
    return outputs


def _outputs(x: Tensor, params: Tensor, *options: Any) -> tuple[Tensor, Tensor]:
    batch, _, height, width = x.shape
    return x.new_empty((batch, height, width)), x.new_empty((batch, 4, height, width))


def _backward(grad: Tensor, state: Tensor, x: Tensor, params: Tensor, *options: Any) -> Grads:
    *mixture, needs = options
    grad_x, grad_params = grads = _gradients(grad, state, x, params, needs)
    # The gradient of a sum is one number spread by strides of 0, which no vector load can read. The
    # copy is a hundredth of params.
    _extension.extension().logistic_mixture(
        *(x, params, state, *mixture, torch.get_num_threads()),
        grad=grad.contiguous(), grad_x=grad_x, grad_params=grad_params,
    )  # fmt: skip
    return grads


def _gradients(grad: Tensor, state: Tensor, x: Tensor, params: Tensor, *options: Any) -> Grads:
    wanted = zip((x, params), options[-1], strict=True)
    return [tensor.new_empty(tensor.shape) if need else None for tensor, need in wanted]


native, native_forward, native_backward = register_op(
    "logistic_mixture",
    ("Tensor x", "Tensor params"),
    "str likelihood, int[] atoms, float smoothing_scale",
    1,
    _forward,
    _outputs,
    _backward,
    _gradients,
)
