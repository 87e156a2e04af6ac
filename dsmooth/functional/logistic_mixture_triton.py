"""The Triton operator of the logistic mixture: the kernels as a differentiable function."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .dispatch import Grads, register_op, wanted_gradients


def log_prob_triton(
    x: Tensor, params: Tensor, likelihood: str, atoms: bool, smoothing_scale: float
) -> Tensor:
    """log_prob (B, H, W) in float32."""
    needs = wanted_gradients((x, params))
    return differentiable(any(needs), x, params, likelihood, atoms, smoothing_scale, *needs)


def _forward(
    compute: bool,
    x: Tensor,
    params: Tensor,
    likelihood: str,
    atoms: bool,
    smoothing_scale: float,
    needs_x: bool,
    needs_params: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """log_prob (B, H, W) in float32, and the gradients of its sum with respect to x and params,
    each in its input's dtype, and empty if not needed.

    Recomputing the components in the backward would double the arithmetic, which is the bottleneck
    in bfloat16.
    """
    batch, _, height, width = x.shape
    log_prob = x.new_empty((batch, height, width), dtype=torch.float32)
    unit_x = x.new_empty(x.shape) if needs_x else None
    unit_params = _empty_gradient(params) if needs_params else None
    if compute:
        from ..kernels import logistic_mixture as kernels

        mixture = likelihood, atoms, smoothing_scale
        kernels.log_prob(x, params, log_prob, unit_x, unit_params, *mixture)
    unit_x = x.new_empty(0) if unit_x is None else unit_x
    unit_params = params.new_empty(0) if unit_params is None else unit_params
    return log_prob, unit_x, unit_params


def _empty_gradient(params: Tensor) -> Tensor:
    """An uninitialised gradient: channels_last for channels_last parameters, else contiguous."""
    batch, channels, height, width = params.shape
    if params.is_contiguous() or not params.is_contiguous(memory_format=torch.channels_last):
        return params.new_empty(params.shape)
    return params.new_empty((batch, height, width, channels)).permute(0, 3, 1, 2)


def _backward(
    compute: bool, grad: Tensor, unit_x: Tensor, unit_params: Tensor, *settings: Any
) -> Grads:
    """The gradients of the sum of log_prob, unit_x and unit_params, times grad (B, H, W) per pixel.

    torch multiplies in float32 and rounds each product once. settings: those of the forward pass,
    and last which gradients are needed.
    """
    units = zip((unit_x, unit_params), settings[-1], strict=True)
    grads = [_empty_gradient(unit) if need else None for unit, need in units]
    for unit, out in zip((unit_x, unit_params), grads, strict=True):
        if compute and out is not None:
            torch.mul(unit, grad[:, None], out=out)
    return grads


differentiable, triton_forward, triton_backward = register_op(
    "logistic_mixture_triton",
    ("Tensor x", "Tensor params"),
    "str likelihood, bool atoms, float smoothing_scale, bool needs_x, bool needs_params",
    2,
    _forward,
    _backward,
    keep_inputs=False,
)
