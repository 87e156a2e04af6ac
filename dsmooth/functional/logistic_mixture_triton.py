"""The Triton operator of the logistic mixture: the kernels' place in autograd."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .dispatch import refuse_second_derivative


@torch.library.custom_op("dsmooth::logistic_mixture_triton", mutates_args=())
def triton_log_prob(
    x: Tensor,
    params: Tensor,
    likelihood: str,
    atoms: Sequence[int],
    smoothing_scale: float,
    needs_x: bool,
    needs_params: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """log_prob (B, H, W) in float32, and the gradients of its sum by x and by params, each in its
    input's dtype; one that is not needed has no elements.

    The gradients are all that autograd keeps. Evaluating the components a second time in the
    backward would spare reading one of them. But it costs as much arithmetic again, and in bfloat16
    arithmetic is the limit.
    """
    from ..kernels import logistic_mixture as kernels

    log_prob, unit_x, unit_params = outputs = _outputs(
        x, params, likelihood, atoms, smoothing_scale, needs_x, needs_params
    )
    kernels.log_prob(
        x,
        params,
        log_prob,
        unit_x if needs_x else None,
        unit_params if needs_params else None,
        likelihood,
        atoms,
        smoothing_scale,
    )
    return outputs


@triton_log_prob.register_fake
def _outputs(
    x: Tensor,
    params: Tensor,
    likelihood: str,
    atoms: Sequence[int],
    smoothing_scale: float,
    needs_x: bool,
    needs_params: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    batch, _, height, width = x.shape
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


@torch.library.custom_op("dsmooth::logistic_mixture_triton_backward", mutates_args=())
def triton_backward(grad: Tensor, unit_x: Tensor, unit_params: Tensor) -> tuple[Tensor, Tensor]:
    """The gradients by x and params, given grad (B, H, W) and the gradients of the sum of log_prob,
    which it multiplies per pixel; one without elements stays so."""
    from ..kernels import logistic_mixture as kernels

    outputs = _backward_outputs(grad, unit_x, unit_params)
    for unit, out in zip((unit_x, unit_params), outputs, strict=True):
        if unit.numel() > 0:
            kernels.scale(unit, grad, out)
    return outputs


@triton_backward.register_fake
def _backward_outputs(grad: Tensor, unit_x: Tensor, unit_params: Tensor) -> tuple[Tensor, Tensor]:
    wanted = unit_params.ndim == 4
    return (
        unit_x.new_empty(unit_x.shape),
        _empty_gradient(unit_params) if wanted else unit_params.new_empty(0),
    )


def _save_for_backward(
    ctx: Any,
    inputs: tuple[Any, ...],
    output: tuple[Tensor, Tensor, Tensor],
) -> None:
    _, unit_x, unit_params = output
    ctx.mark_non_differentiable(unit_x, unit_params)
    ctx.save_for_backward(unit_x, unit_params)


def _backward(ctx: Any, grad: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
    if torch.is_grad_enabled():  # create_graph=True: what is kept does not know its inputs
        refuse_second_derivative("Triton logistic mixture")(ctx, grad)
    needs_x, needs_params = ctx.needs_input_grad[:2]
    grad_x, grad_params = triton_backward(grad, *ctx.saved_tensors)
    needed = grad_x if needs_x else None, grad_params if needs_params else None
    return *needed, *[None] * (len(ctx.needs_input_grad) - 2)


triton_log_prob.register_autograd(_backward, setup_context=_save_for_backward)
