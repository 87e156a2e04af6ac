"""The Triton op of the gated resnet; `gated_resnet` checks arguments and chooses it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..kernels.geometry import empty_channels_last
from .dispatch import refuse_second_derivative
from .gated_resnet_operands import (
    FIELDS,
    GRADIENTS,
    SCHEMA,
    Operands,
    check_images,
    check_of_op,
    input_gradients,
)
from .taps import taps_of


def gated_resnet_triton(x: Tensor, given: Operands) -> tuple[Tensor, Tensor]:
    """(y, h), (B, F, H, W) channels_last; h, the first convolution's output, for the backward."""
    return forward_op(x, *given)


@torch.library.custom_op(
    "dsmooth::gated_resnet_triton",
    mutates_args=(),
    schema=f"(Tensor x, {SCHEMA}) -> (Tensor, Tensor)",
)
def forward_op(x: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    from ..kernels import gated_resnet as kernels

    given = Operands(*rest)
    if x.numel() == 0:
        return _outputs(x, *rest)
    check_of_op(x, given)
    return kernels.forward(x, given.skips(), *_lists(given), given.seed, *_numbers(given))


@forward_op.register_fake
def _outputs(x: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    check_of_op(x, Operands(*rest))
    return empty_channels_last(x, x.shape[1]), empty_channels_last(x, x.shape[1])


@torch.library.custom_op(
    "dsmooth::gated_resnet_triton_backward",
    mutates_args=(),
    schema=f"(Tensor grad_y, Tensor x, Tensor h, {SCHEMA}) -> "
    f"({', '.join(['Tensor'] * len(GRADIENTS))})",
)
def backward_op(grad_y: Tensor, x: Tensor, h: Tensor, *rest: Any) -> tuple[Tensor, ...]:
    """The gradients GRADIENTS; those of absent operands have no elements."""
    from ..kernels import gated_resnet as kernels

    given = Operands(*rest)
    if x.numel() == 0:
        return tuple(tensor.zero_() for tensor in _gradients(grad_y, x, h, *rest))
    check_of_op(x, given)
    check_images(x, grad_y=grad_y, h=h)
    grads = kernels.backward(
        grad_y, x, h, given.skips(), *_lists(given), given.seed, *_numbers(given)
    )
    written = [n for n in _WRITTEN if n == "x" or getattr(given, n) is not None]
    by_name = {f"grad_{n}": grad for n, grad in zip(written, grads, strict=True)}
    return tuple(by_name[name] if name in by_name else x.new_empty(0) for name in GRADIENTS)


@backward_op.register_fake
def _gradients(grad_y: Tensor, x: Tensor, h: Tensor, *rest: Any) -> tuple[Tensor, ...]:
    given = Operands(*rest)
    check_of_op(x, given)
    check_images(x, grad_y=grad_y, h=h)
    tensors = {"x": x, **given.tensors()}
    names = (gradient.removeprefix("grad_") for gradient in GRADIENTS)
    return tuple(
        x.new_empty(0) if tensors[name] is None else _empty_like(name, tensors[name])
        for name in names
    )


# In the order of the list that the kernels' backward returns.
_WRITTEN = (
    *("x", "conv_in", "bias_in", "conv_out", "bias_out", "nin_skip"),
    *("gain_in", "gain_out", "gain_nin", "skip", "skip_2"),
)


def _lists(given: Operands) -> tuple[list[Tensor], list[Tensor]]:
    """Weights and gains as the kernels take them: biases and gains in adjacent numbers."""
    convs = (given.conv_in, given.bias_in, given.conv_out, given.bias_out)
    weights = (*convs, given.nin_skip, given.bias_nin)
    gains = (given.gain_in, given.gain_out, given.gain_nin)
    return (
        [w if w.ndim == 4 else w.contiguous() for w in weights if w is not None],
        [gain.contiguous() for gain in gains if gain is not None],
    )


def _numbers(given: Operands) -> tuple[Any, ...]:
    taps = taps_of(given.conv_in, given.shift)
    return taps, given.dropout_numbers(), given.layer, given.first_image


def _empty_like(name: str, tensor: Tensor) -> Tensor:
    """For a gradient: channels_last for images and for kernels that are that alone."""
    last = FIELDS[name].layout == "ChannelsLast"
    if FIELDS[name].layout == "Kernel" and not tensor.is_contiguous():
        last = tensor.is_contiguous(memory_format=torch.channels_last)
    order = torch.channels_last if last else torch.contiguous_format
    return torch.empty(tensor.shape, dtype=tensor.dtype, device=tensor.device, memory_format=order)


def _save_for_backward(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    x, *tensors, shift, dropout, layer, first_image = inputs
    _, h = output
    ctx.mark_non_differentiable(h)
    ctx.set_materialize_grads(False)
    ctx.settings = shift, dropout, layer, first_image
    ctx.save_for_backward(x, h, *tensors)


def _backward(ctx: Any, grad_y: Tensor | None, _: Tensor | None) -> tuple[Tensor | None, ...]:
    x, h, *tensors = ctx.saved_tensors
    given = Operands(*tensors, *ctx.settings)
    if grad_y is None:
        return None, *(None for _ in given)
    return input_gradients(given, backward_op(grad_y, x, h, *given))


forward_op.register_autograd(_backward, setup_context=_save_for_backward)
backward_op.register_autograd(refuse_second_derivative("Triton gated resnet"))
