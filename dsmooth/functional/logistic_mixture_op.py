"""The log-likelihoods of the extension and of Triton as one op, whose arguments are checked."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .. import _extension
from .dispatch import Grads, register_op


def _forward(
    compute: bool, x: Tensor, params: Tensor, *options: Any
) -> tuple[Tensor, Tensor, Tensor]:
    """log_prob (B, H, W), by impl "native" in the dtype of x, by "triton" in float32; and two
    tensors for the backward.

    native: sums and their maxima, (B, 4, H, W), and an empty tensor; saving the gradients
    themselves, as large as params, would take longer. triton: the gradients of the sum of log_prob
    by x and by params in their dtypes, empty if not needed; computing the components again would
    double the arithmetic, which is the bottleneck in bfloat16.
    """
    batch, _, height, width = x.shape
    *mixture, impl, needs_x, needs_params = options
    if impl == "native":
        log_prob, state = x.new_empty(batch, height, width), x.new_empty(batch, 4, height, width)
        if compute:
            arguments = x, params, state, *mixture, torch.get_num_threads()
            _extension.extension().logistic_mixture(*arguments, log_prob=log_prob)
        return log_prob, state, x.new_empty(0)
    log_prob = x.new_empty((batch, height, width), dtype=torch.float32)
    unit_x = x.new_empty(x.shape if needs_x else 0)
    unit_params = _empty_gradient(params) if needs_params else params.new_empty(0)
    if compute:
        from ..kernels import logistic_mixture as kernels

        units = unit_x if needs_x else None, unit_params if needs_params else None
        kernels.log_prob(x, params, log_prob, *units, *mixture)
    return log_prob, unit_x, unit_params


def _backward(
    compute: bool,
    grad: Tensor,
    saved: Tensor,
    unit_params: Tensor,
    x: Tensor,
    params: Tensor,
    *options: Any,
) -> Grads:
    """saved: the second result of `_forward`. options: its own, and which gradients are needed."""
    *mixture, impl, _, _, needs = options
    like_params = params.new_empty(params.shape) if impl == "native" else _empty_gradient(params)
    grad_x, grad_params = (
        tensor if need else None
        for tensor, need in zip((x.new_empty(x.shape), like_params), needs, strict=True)
    )
    if compute and impl == "native":
        _extension.extension().logistic_mixture(
            x, params, saved, *mixture, torch.get_num_threads(),
            grad=grad.contiguous(),  # a sum's has strides of 0, which vector loads cannot read
            grad_x=grad_x, grad_params=grad_params,
        )  # fmt: skip
    elif compute:
        # torch multiplies in float32 and rounds each product once.
        for unit, out in ((saved, grad_x), (unit_params, grad_params)):
            if out is not None:
                torch.mul(unit, grad[:, None], out=out)
    return [grad_x, grad_params]


def _empty_gradient(params: Tensor) -> Tensor:
    """An uninitialised gradient: channels_last for channels_last parameters, else contiguous."""
    batch, channels, height, width = params.shape
    if params.is_contiguous() or not params.is_contiguous(memory_format=torch.channels_last):
        return params.new_empty(params.shape)
    return params.new_empty((batch, height, width, channels)).permute(0, 3, 1, 2)


forward_op, backward_op = register_op(
    "logistic_mixture",
    ("Tensor x", "Tensor params"),
    "str likelihood, bool atoms, float smoothing_scale, str impl, bool needs_x, bool needs_params",
    2,
    _forward,
    _backward,
)
