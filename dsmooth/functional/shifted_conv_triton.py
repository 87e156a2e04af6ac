"""The Triton op of the shifted convolutions; `shifted_conv2d` checks arguments and chooses it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..kernels.geometry import Taps, empty_channels_last
from .dispatch import refuse_second_derivative
from .registration import call, register_op
from .taps import check_kernel, taps_of, transposed_taps_of


def _taps(weight: Tensor, shift: str, stride: int, transposed: bool) -> Taps:
    return transposed_taps_of(weight, shift) if transposed else taps_of(weight, shift, stride)


def _check(x: Tensor, weight: Tensor, shift: str, stride: int, transposed: bool) -> None:
    """Raise ValueError for what the kernels would read beyond."""
    check_kernel(weight, shift)
    channels = weight.shape[0 if transposed else 1]
    if x.ndim != 4 or x.shape[1] != channels:
        raise ValueError(f"x must have shape (B, {channels}, H, W), got {tuple(x.shape)}")
    if weight.device != x.device:
        raise ValueError(f"weight must be on {x.device}, got {weight.device}")
    if stride not in (1, 2) or (transposed and (stride != 2 or weight.shape[2] != 2)):
        raise ValueError(f"stride {stride} and a kernel of {weight.shape[2]} rows do not fit")


def _check_shape(name: str, tensor: Tensor, shape: tuple[int, ...], x: Tensor) -> None:
    if tuple(tensor.shape) != shape or tensor.device != x.device:
        raise ValueError(
            f"{name} must have shape {shape} on {x.device}, "
            f"got {tuple(tensor.shape)} on {tensor.device}"
        )


def _forward(
    x: Tensor, weight: Tensor, bias: Tensor | None, shift: str, stride: int, transposed: bool
) -> tuple[Tensor, Tensor]:
    """`shifted_conv2d`, or (transposed) `shifted_conv_transpose2d`, channels_last; and for the
    backward the weight in x's dtype and the order of the kernels.

    weight and bias are float32, float64 for float64 x.
    """
    from ..kernels import shifted_conv as kernels

    y, packed = _outputs(x, weight, bias, shift, stride, transposed)
    if y.numel() == 0:
        return y, packed.zero_()
    bias = None if bias is None else bias.contiguous()
    convolve = kernels.forward_transposed if transposed else kernels.forward
    taps = _taps(weight, shift, stride, transposed)
    return convolve(x, weight, bias, taps, (y.shape[2], y.shape[3]))


def _outputs(
    x: Tensor, weight: Tensor, bias: Tensor | None, shift: str, stride: int, transposed: bool
) -> tuple[Tensor, Tensor]:
    y = _output(x, weight, bias, shift, stride, transposed)
    return y, x.new_empty((2, weight.numel()))


def _output(
    x: Tensor, weight: Tensor, bias: Tensor | None, shift: str, stride: int, transposed: bool
) -> Tensor:
    _check(x, weight, shift, stride, transposed)
    filters = weight.shape[1 if transposed else 0]
    if bias is not None:
        _check_shape("bias", bias, (filters,), x)
    rows, cols = x.shape[2:]
    if transposed:
        return empty_channels_last(x, filters, (2 * rows, 2 * cols))
    return empty_channels_last(
        x, filters, ((rows + stride - 1) // stride, (cols + stride - 1) // stride)
    )


def _compute_gradients(
    grad_y: Tensor,
    x: Tensor,
    packed: Tensor,
    weight: Tensor,
    shift: str,
    stride: int,
    transposed: bool,
    need_x: bool,
    need_weight: bool,
) -> tuple[Tensor, Tensor]:
    """Gradients of x (channels_last) and of weight (contiguous or channels_last as it is).

    One that is not needed has no elements.
    """
    from ..kernels import shifted_conv as kernels

    grads = _gradients(grad_y, x, packed, weight, shift, stride, transposed, need_x, need_weight)
    if x.numel() == 0:
        return grads[0].zero_(), grads[1].zero_()
    taps = _taps(weight, shift, stride, transposed)
    grad_x, grad_weight = kernels.backward(
        grad_y,
        x,
        packed.contiguous(),
        weight,
        taps,
        transposed,
        need_x=need_x,
        need_weight=need_weight,
    )
    return (
        x.new_empty(0) if grad_x is None else grad_x,
        weight.new_empty(0) if grad_weight is None else grad_weight,
    )


def _gradients(
    grad_y: Tensor,
    x: Tensor,
    packed: Tensor,
    weight: Tensor,
    shift: str,
    stride: int,
    transposed: bool,
    need_x: bool,
    need_weight: bool,
) -> tuple[Tensor, Tensor]:
    expected = _output(x, weight, None, shift, stride, transposed).shape
    _check_shape("grad_y", grad_y, tuple(expected), x)
    _check_shape("packed", packed, (2, weight.numel()), x)
    if packed.dtype != x.dtype:
        raise ValueError(f"packed must be {x.dtype}, got {packed.dtype}")
    last = not weight.is_contiguous() and weight.is_contiguous(memory_format=torch.channels_last)
    layout = torch.channels_last if last else torch.contiguous_format
    grad_weight = torch.empty(
        weight.shape, dtype=weight.dtype, device=x.device, memory_format=layout
    )
    return (
        empty_channels_last(x, x.shape[1]) if need_x else x.new_empty(0),
        grad_weight if need_weight else weight.new_empty(0),
    )


def _save_for_backward(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    x, weight, _, *ctx.settings = inputs
    _, packed = output
    ctx.mark_non_differentiable(packed)
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(x, packed, weight)


def _backward(ctx: Any, grad_y: Tensor | None, _: Tensor | None) -> tuple[Any, ...]:
    if grad_y is None:
        return None, None, None, None, None, None
    x, packed, weight = ctx.saved_tensors
    need_x, need_weight, need_bias, *_ = ctx.needs_input_grad
    grad_x, grad_weight, grad_bias = None, None, None
    if need_x or need_weight:
        given = (grad_y, x, packed, weight, *ctx.settings)
        grads = call(shifted_conv_triton_backward, *given, need_x, need_weight)
        grad_x, grad_weight = (
            grad if need else None for grad, need in zip(grads, (need_x, need_weight), strict=True)
        )
    if need_bias:
        grad_bias = grad_y.sum((0, 2, 3), dtype=weight.dtype)
    return grad_x, grad_weight, grad_bias, None, None, None


shifted_conv_triton = register_op(
    "shifted_conv_triton",
    "(Tensor x, Tensor weight, Tensor? bias, str shift, int stride, bool transposed) -> "
    "(Tensor, Tensor)",
    _forward,
    _outputs,
    _backward,
    _save_for_backward,
)
shifted_conv_triton_backward = register_op(
    "shifted_conv_triton_backward",
    "(Tensor grad_y, Tensor x, Tensor packed, Tensor weight, str shift, int stride, "
    "bool transposed, bool need_x, bool need_weight) -> (Tensor, Tensor)",
    _compute_gradients,
    _gradients,
    refuse_second_derivative("Triton convolutions"),
)
