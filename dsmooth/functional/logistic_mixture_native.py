"""The native operator of the logistic mixture: the C++ extension as a differentiable function."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .. import _extension
from .dispatch import Grads, register_op, wanted_gradients


def log_prob_native(
    x: Tensor, params: Tensor, likelihood: str, atoms: bool, smoothing_scale: float
) -> Tensor:
    """log_prob (B, H, W) of float32 or float64 tensors."""
    graded = any(wanted_gradients((x, params)))
    return differentiable(graded, x, params, likelihood, atoms, smoothing_scale)


def _forward(compute: bool, x: Tensor, params: Tensor, *mixture: Any) -> tuple[Tensor, Tensor]:
    """log_prob (B, H, W), and a state (B, 4, H, W): two sums and their maxima.

    Saving the gradients themselves, which are as large as params, would take longer.
    """
    batch, _, height, width = x.shape
    log_prob, state = x.new_empty((batch, height, width)), x.new_empty((batch, 4, height, width))
    if compute:
        arguments = x, params, state, *mixture, torch.get_num_threads()
        _extension.extension().logistic_mixture(*arguments, log_prob=log_prob)
    return log_prob, state


def _backward(
    compute: bool, grad: Tensor, state: Tensor, x: Tensor, params: Tensor, *settings: Any
) -> Grads:
    """settings: those of the mixture, and last which gradients are needed."""
    *mixture, needs = settings
    grad_x, grad_params = (
        tensor.new_empty(tensor.shape) if need else None
        for tensor, need in zip((x, params), needs, strict=True)
    )
    if compute:
        # A sum's gradient has strides of 0, which vector loads cannot read.
        results = {"grad": grad.contiguous(), "grad_x": grad_x, "grad_params": grad_params}
        arguments = x, params, state, *mixture, torch.get_num_threads()
        _extension.extension().logistic_mixture(*arguments, **results)
    return [grad_x, grad_params]


differentiable, native_forward, native_backward = register_op(
    "logistic_mixture",
    ("Tensor x", "Tensor params"),
    "str likelihood, bool atoms, float smoothing_scale",
    1,
    _forward,
    _backward,
)
