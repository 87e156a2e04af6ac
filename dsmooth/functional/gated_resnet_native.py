"""The native op of the gated resnet; `gated_resnet` checks arguments and chooses it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .. import _extension
from ..kernels.geometry import empty_channels_last
from .dispatch import constant_when_compiled, refuse_second_derivative
from .gated_resnet_operands import (
    FIELDS,
    GRADIENTS,
    SCHEMA,
    Operands,
    check_images,
    check_of_op,
    input_gradients,
)
from .registration import call, register_op
from .taps import taps_of

MAX_TAPS = 64
_IMAGES = frozenset(field.name for field in FIELDS.values() if field.layout == "ChannelsLast")
_KERNELS = frozenset(field.name for field in FIELDS.values() if field.layout == "Kernel")


def gated_resnet_native(
    x: Tensor, given: Operands, save: bool = True, instruction_set: str = "auto"
) -> tuple[Tensor, Tensor, Tensor]:
    """(y, h, gates), channels_last; the last two, (B, F, H, W) and (B, 2F, H, W), for the backward.

    Without `save` h and gates have no elements. Raises ValueError for an unknown instruction set.
    """
    return call(forward_op, x, *given, save, instruction_set)


@constant_when_compiled
def native_obstacle(device_type: str, dtype: torch.dtype) -> str | None:
    """Why the extension cannot compute this; None if it can."""
    if device_type != "cpu":
        return f"it runs on cpu tensors, got {device_type}"
    if dtype not in (torch.float32, torch.float64, torch.bfloat16):
        return f"it computes in float32, float64 and bfloat16, got {dtype}"
    return _extension.unavailable_reason()


def _forward(x: Tensor, *rest: Any) -> tuple[Tensor, Tensor, Tensor]:
    *given, save, instruction_set = rest
    operands = Operands(*given)
    tensors = _dense(x, operands)
    y, h, gates = _outputs(x, save)
    tensors["y"] = y
    if save:
        tensors["h"], tensors["gates"] = h, gates
    _extension.extension().gated_resnet_forward(tensors, *_settings(operands), instruction_set)
    return y, h, gates


def _fake_forward(x: Tensor, *rest: Any) -> tuple[Tensor, Tensor, Tensor]:
    *given, save, _ = rest
    check_of_op(x, Operands(*given))
    return _outputs(x, save)


def _outputs(x: Tensor, save: bool) -> tuple[Tensor, Tensor, Tensor]:
    f = x.shape[1]
    if not save:
        return empty_channels_last(x, f), x.new_empty(0), x.new_empty(0)
    return empty_channels_last(x, f), empty_channels_last(x, f), empty_channels_last(x, 2 * f)


def _compute_gradients(
    grad_y: Tensor, x: Tensor, h: Tensor, gates: Tensor, *rest: Any
) -> tuple[Tensor, ...]:
    """The gradients GRADIENTS; those of absent operands have no elements."""
    *given, instruction_set = rest
    operands = Operands(*given)
    tensors = _dense(x, operands)
    grads = _gradients(tensors)
    # Hooks on saved tensors may have brought them back in another memory order.
    for name, tensor in (("grad_y", grad_y), ("h", h), ("gates", gates)):
        tensors[name] = _channels_last(name, tensor)
    tensors |= grads
    _extension.extension().gated_resnet_backward(tensors, *_settings(operands), instruction_set)
    return _filled(grads, x)


def _fake_backward(
    grad_y: Tensor, x: Tensor, h: Tensor, gates: Tensor, *rest: Any
) -> tuple[Tensor, ...]:
    *given, _ = rest
    operands = Operands(*given)
    check_of_op(x, operands)
    check_images(x, grad_y=grad_y, h=h, gates=gates)
    return _filled(_gradients(_dense(x, operands)), x)


def _gradients(tensors: dict[str, Any]) -> dict[str, Tensor]:
    """Room for the gradients of what is given."""
    grads = {}
    for gradient in GRADIENTS:
        name = gradient.removeprefix("grad_")
        tensor = tensors[name]
        if tensor is not None:
            order = torch.channels_last if name in _IMAGES else torch.preserve_format
            grads[gradient] = torch.empty_like(tensor, memory_format=order)
    return grads


def _filled(grads: dict[str, Tensor], x: Tensor) -> tuple[Tensor, ...]:
    return tuple(grads[name] if name in grads else x.new_empty(0) for name in GRADIENTS)


def _dense(x: Tensor, given: Operands) -> dict[str, Any]:
    """The inputs by name, in the memory order that the field table asks for."""
    tensors = {"x": x, **given.tensors()}
    last = all(
        conv.is_contiguous(memory_format=torch.channels_last)
        for conv in (given.conv_in, given.conv_out)
    )
    for name, tensor in tensors.items():
        if tensor is None:
            continue
        if name in _IMAGES or (last and name in _KERNELS):
            tensors[name] = _channels_last(name, tensor)
        else:
            tensors[name] = tensor.contiguous()
    return tensors


def _settings(given: Operands) -> tuple[int, int, int, int, int, float, int]:
    """pad_top, pad_left, layer, first_image, keep_from, scale and threads for the extension."""
    taps = taps_of(given.conv_in, given.shift)
    least, scale = given.dropout_numbers()
    place = given.layer, given.first_image
    return taps.top, taps.left, *place, least, scale, torch.get_num_threads()


def _save_for_backward(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    x, *tensors, shift, dropout, layer, first_image, _save, ctx.instruction_set = inputs
    _, h, gates = output
    ctx.mark_non_differentiable(h, gates)
    ctx.set_materialize_grads(False)
    ctx.settings = shift, dropout, layer, first_image
    ctx.save_for_backward(x, h, gates, *tensors)


def _backward(ctx: Any, grad_y: Tensor | None, *_: Tensor | None) -> tuple[Tensor | None, ...]:
    rest = None, None  # save, instruction_set
    x, h, gates, *tensors = ctx.saved_tensors
    given = Operands(*tensors, *ctx.settings)
    if grad_y is None:
        return None, *(None for _ in given), *rest
    grads = call(backward_op, grad_y, x, h, gates, *given, ctx.instruction_set)
    return *input_gradients(given, GRADIENTS, grads), *rest


def _channels_last(name: str, tensor: Tensor) -> Tensor:
    if tensor.ndim != 4:
        raise ValueError(f"{name} must have 4 dimensions, got {tuple(tensor.shape)}")
    return tensor.contiguous(memory_format=torch.channels_last)


forward_op = register_op(
    "gated_resnet",
    f"(Tensor x, {SCHEMA}, bool save, str instruction_set) -> (Tensor, Tensor, Tensor)",
    _forward,
    _fake_forward,
    _backward,
    _save_for_backward,
)
backward_op = register_op(
    "gated_resnet_backward",
    f"(Tensor grad_y, Tensor x, Tensor h, Tensor gates, {SCHEMA}, str instruction_set) -> "
    f"({', '.join(['Tensor'] * len(GRADIENTS))})",
    _compute_gradients,
    _fake_backward,
    refuse_second_derivative("native gated resnet"),
)
