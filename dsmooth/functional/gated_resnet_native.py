"""The native op of the gated resnet; `gated_resnet` checks arguments and chooses it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .. import _extension
from ..kernels.geometry import empty_channels_last
from .dispatch import constant_when_compiled, refuse_second_derivative, register_op
from .gated_resnet_operands import (
    FIELDS,
    GRADIENTS,
    SCHEMA,
    Operands,
    Settings,
    apart,
    empty_gradient,
    needs_gradient,
)
from .shifted_conv import taps_of

MAX_TAPS = 64


def gated_resnet_native(
    given: Operands, settings: Settings, instruction_set: str = "auto"
) -> Tensor:
    """y (B, F, H, W), channels_last. Raises ValueError for an unknown instruction set."""
    if needs_gradient(given):
        return _GatedResnet.apply(*given, *settings, instruction_set)
    return forward_op(*given, *settings, False, instruction_set)[0]


@constant_when_compiled
def native_obstacle(device_type: str, dtype: torch.dtype) -> str | None:
    """Why the extension cannot compute this; None if it can."""
    if device_type != "cpu":
        return f"it runs on cpu tensors, got {device_type}"
    if dtype not in (torch.float32, torch.float64, torch.bfloat16):
        return f"it computes in float32, float64 and bfloat16, got {dtype}"
    return _extension.native_obstacle()


def _forward(*args: Any) -> tuple[Tensor, Tensor, Tensor]:
    """(y, h, gates), channels_last; the last two, (B, F, H, W) and (B, 2F, H, W), for the backward:
    without `save` they have no elements."""
    given, settings, (save, instruction_set) = apart(args)
    y, h, gates = _outputs(*args)
    tensors = _table(given) | {"y": y}
    if save:
        tensors |= {"h": h, "gates": gates}
    numbers = _numbers(given, settings)
    _extension.extension().gated_resnet_forward(tensors, *numbers, instruction_set)
    return y, h, gates


def _outputs(*args: Any) -> tuple[Tensor, Tensor, Tensor]:
    (x, *_), _, (save, _) = apart(args)
    f = x.shape[1]
    if not save:
        return empty_channels_last(x, f), x.new_empty(0), x.new_empty(0)
    return empty_channels_last(x, f), empty_channels_last(x, f), empty_channels_last(x, 2 * f)


def _compute_gradients(grad_y: Tensor, h: Tensor, gates: Tensor, *rest: Any) -> tuple[Tensor, ...]:
    """The gradients GRADIENTS; those of absent operands have no elements."""
    given, settings, (instruction_set,) = apart(rest)
    tensors = _table(given)
    grads = _room(Operands(**tensors))
    named = zip(GRADIENTS, grads, strict=True)
    written = {name: g for name, g in named if tensors[name.removeprefix("grad_")] is not None}
    # Hooks on saved tensors may have brought them back in another memory order.
    for name, tensor in (("grad_y", grad_y), ("h", h), ("gates", gates)):
        tensors[name] = tensor.contiguous(memory_format=torch.channels_last)
    numbers = _numbers(given, settings)
    _extension.extension().gated_resnet_backward(tensors | written, *numbers, instruction_set)
    return grads


def _gradients(grad_y: Tensor, h: Tensor, gates: Tensor, *rest: Any) -> tuple[Tensor, ...]:
    return _room(Operands(**_table(apart(rest)[0])))


def _room(given: Operands) -> tuple[Tensor, ...]:
    """Uninitialised GRADIENTS."""
    return tuple(empty_gradient(given, name.removeprefix("grad_")) for name in GRADIENTS)


def _table(given: Operands) -> dict[str, Any]:
    """The operands by name, in the memory orders of the field table."""
    tensors: dict[str, Any] = given._asdict()
    kernels = (given.conv_in, given.conv_out)
    last = all(conv.is_contiguous(memory_format=torch.channels_last) for conv in kernels)
    for name, tensor in tensors.items():
        layout = FIELDS[name].layout
        if tensor is not None and (layout == "ChannelsLast" or (last and layout == "Kernel")):
            tensors[name] = tensor.contiguous(memory_format=torch.channels_last)
        elif tensor is not None:
            tensors[name] = tensor.contiguous()
    return tensors


def _numbers(given: Operands, settings: Settings) -> tuple[int, int, int, int, int, float, int]:
    """pad_top, pad_left, layer, first_image, keep_from, scale and threads for the extension."""
    taps = taps_of(given.conv_in, settings.shift)
    layer, least, scale, first_image = settings.numbers()
    return taps.top, taps.left, layer, first_image, least, scale, torch.get_num_threads()


forward_op = register_op(
    "gated_resnet",
    f"({SCHEMA}, bool save, str instruction_set) -> (Tensor, Tensor, Tensor)",
    _forward,
    _outputs,
)
backward_op = register_op(
    "gated_resnet_backward",
    f"(Tensor grad_y, Tensor h, Tensor gates, {SCHEMA}, str instruction_set) -> "
    f"({', '.join(['Tensor'] * len(GRADIENTS))})",
    _compute_gradients,
    _gradients,
    refuse_second_derivative("native gated resnet"),
)


class _GatedResnet(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *args: Any) -> Tensor:
        *inputs, instruction_set = args
        y, h, gates = forward_op(*inputs, True, instruction_set)
        given, settings, _ = apart(inputs)
        ctx.save_for_backward(h, gates, *given)
        ctx.rest = *settings, instruction_set
        return y

    @staticmethod
    def backward(ctx: Any, grad_y: Tensor) -> tuple[Tensor | None, ...]:
        h, gates, *tensors = ctx.saved_tensors
        found = backward_op(grad_y, h, gates, *tensors, *ctx.rest)
        grads = dict(zip(GRADIENTS, found, strict=True))
        given = Operands(*tensors)
        if given.bias_nin is not None:  # it is added to h as bias_in is
            grads["grad_bias_nin"] = grads["grad_bias_in"].clone()
        named = given._asdict().items()
        of_operands = [None if t is None else grads.get(f"grad_{name}") for name, t in named]
        return *of_operands, *(None,) * len(ctx.rest)
