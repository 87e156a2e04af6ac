"""The Triton operator of the logistic mixture: the kernels' place in autograd."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .dispatch import refuse_second_derivative, register_op


def _forward(x: Tensor, params: Tensor, *rest: Any) -> tuple[Tensor, Tensor, Tensor]:
    """log_prob (B, H, W) in float32, and the gradients of its sum by x and by params, each in its
    input's dtype; one that is not needed has no elements.

    The gradients are all that autograd keeps. Evaluating the components a second time in the
    backward would spare reading one of them. But it costs as much arithmetic again, and in bfloat16
    arithmetic is the limit.
    """
    from ..kernels import logistic_mixture as kernels

    *mixture, needs_x, needs_params = rest
    log_prob, unit_x, unit_params = outputs = _outputs(x, params, *rest)
    units = unit_x if needs_x else None, unit_params if needs_params else None
    kernels.log_prob(x, params, log_prob, *units, *mixture)
    return outputs


def _outputs(x: Tensor, params: Tensor, *rest: Any) -> tuple[Tensor, Tensor, Tensor]:
    batch, _, height, width = x.shape
    *_, needs_x, needs_params = rest
    return (
        x.new_empty((batch, height, width), dtype=torch.float32),
        x.new_empty(x.shape if needs_x else 0),
        _empty_gradient(params) if needs_params else params.new_empty(0),
    )


def _empty_gradient(params: Tensor) -> Tensor:
    """channels_last for channels_last parameters, which then want such a gradient; else
    contiguous."""
    batch, channels, height, width = params.shape
    if params.is_contiguous() or not params.is_contiguous(memory_format=torch.channels_last):
        return params.new_empty(params.shape)
    return params.new_empty((batch, height, width, channels)).permute(0, 3, 1, 2)


def _compute_gradients(grad: Tensor, unit_x: Tensor, unit_params: Tensor) -> tuple[Tensor, Tensor]:
    """The gradients by x and params, given grad (B, H, W) and the gradients of the sum of log_prob,
    which it multiplies per pixel; one without elements stays so."""
    from ..kernels import logistic_mixture as kernels

    outputs = _gradients(grad, unit_x, unit_params)
    for unit, out in zip((unit_x, unit_params), outputs, strict=True):
        if unit.numel() > 0:
            kernels.scale(unit, grad, out)
    return outputs


def _gradients(grad: Tensor, unit_x: Tensor, unit_params: Tensor) -> tuple[Tensor, Tensor]:
    wanted = unit_params.ndim == 4
    return (
        unit_x.new_empty(unit_x.shape),
        _empty_gradient(unit_params) if wanted else unit_params.new_empty(0),
    )


def _save_for_backward(
    ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]
) -> None:
    _, unit_x, unit_params = output
    ctx.mark_non_differentiable(unit_x, unit_params)
    ctx.save_for_backward(unit_x, unit_params)


def _backward(ctx: Any, grad: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
    if torch.is_grad_enabled():  # create_graph=True: the saved gradients do not know their inputs
        refuse_second_derivative("Triton logistic mixture")(ctx, grad)
    needs_x, needs_params = ctx.needs_input_grad[:2]
    grad_x, grad_params = triton_backward(grad, *ctx.saved_tensors)
    needed = grad_x if needs_x else None, grad_params if needs_params else None
    return *needed, *[None] * (len(ctx.needs_input_grad) - 2)


triton_log_prob = register_op(
    "logistic_mixture_triton",
    "(Tensor x, Tensor params, str likelihood, int[] atoms, float smoothing_scale, bool needs_x, "
    "bool needs_params) -> (Tensor, Tensor, Tensor)",
    _forward,
    _outputs,
    _backward,
    _save_for_backward,
)
triton_backward = register_op(
    "logistic_mixture_triton_backward",
    "(Tensor grad, Tensor unit_x, Tensor unit_params) -> (Tensor, Tensor)",
    _compute_gradients,
    _gradients,
)
