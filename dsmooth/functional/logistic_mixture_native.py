"""The native operator of the logistic mixture: the C++ extension and its place in autograd."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .. import _extension
from .dispatch import refuse_second_derivative, register_op

# Arguments after the tensors: likelihood, atoms and smoothing_scale.
_OPTIONS = "str likelihood, int[] atoms, float smoothing_scale"


def _forward(x: Tensor, params: Tensor, *options: Any) -> tuple[Tensor, Tensor]:
    """(log_prob (B, H, W), state (B, 4, H, W)) of float32 or float64 tensors.

    The state is two sums over components and atoms per pixel. With it the backward evaluates each
    component once and writes each gradient once, already times the gradient from above. Keeping
    unit gradients from the forward would save the second evaluation. But they need a second tensor
    of the size of params, which takes longer to write and read.
    """
    log_prob, state = outputs = _outputs(x, params, *options)
    threads = torch.get_num_threads()
    _extension.extension().logistic_mixture(x, params, state, *options, threads, log_prob=log_prob)
    return outputs


def _outputs(x: Tensor, params: Tensor, *options: Any) -> tuple[Tensor, Tensor]:
    batch, _, height, width = x.shape
    return x.new_empty((batch, height, width)), x.new_empty((batch, 4, height, width))


def _compute_gradients(
    grad: Tensor, x: Tensor, params: Tensor, state: Tensor, *rest: Any
) -> tuple[Tensor, Tensor]:
    """The gradients by x and params given grad (B, H, W), the gradient of log_prob.

    One that is not needed has no elements.
    """
    *options, needs_x, needs_params = rest
    grad_x, grad_params = grads = _gradients(grad, x, params, state, *rest)
    # The gradient of a sum is one number spread by strides of 0, which no vector load can read. The
    # copy is a hundredth of params.
    _extension.extension().logistic_mixture(
        *(x, params, state, *options, torch.get_num_threads()),
        grad=grad.contiguous(),
        grad_x=grad_x if needs_x else None,
        grad_params=grad_params if needs_params else None,
    )
    return grads


def _gradients(
    grad: Tensor, x: Tensor, params: Tensor, state: Tensor, *rest: Any
) -> tuple[Tensor, Tensor]:
    *_, needs_x, needs_params = rest
    return (
        x.new_empty(x.shape) if needs_x else x.new_empty(0),
        x.new_empty(params.shape) if needs_params else x.new_empty(0),
    )


def _save_for_backward(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    x, params, *ctx.options = inputs
    state = output[1]
    ctx.mark_non_differentiable(state)
    ctx.save_for_backward(x, params, state)


def _backward(ctx: Any, grad: Tensor, _grad_state: Tensor) -> tuple[Tensor | None, ...]:
    needs_x, needs_params = ctx.needs_input_grad[:2]
    grad_x, grad_params = native_backward(
        grad, *ctx.saved_tensors, *ctx.options, needs_x, needs_params
    )
    return grad_x if needs_x else None, grad_params if needs_params else None, None, None, None


native = register_op(
    "logistic_mixture",
    f"(Tensor x, Tensor params, {_OPTIONS}) -> (Tensor, Tensor)",
    _forward,
    _outputs,
    _backward,
    _save_for_backward,
)
native_backward = register_op(
    "logistic_mixture_backward",
    f"(Tensor grad, Tensor x, Tensor params, Tensor state, {_OPTIONS}, bool needs_x, "
    "bool needs_params) -> (Tensor, Tensor)",
    _compute_gradients,
    _gradients,
    refuse_second_derivative("native logistic mixture"),
)
