"""The native op of the gated resnet; `gated_resnet` checks arguments and chooses it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .. import _extension
from ..kernels.geometry import empty_channels_last
from .gated_resnet_operands import (
    FIELDS,
    Operands,
    Settings,
    differentiable,
    empty_gradient,
    is_needed,
)
from .shifted_conv import taps_of

MAX_TAPS = 64


def _outputs(given: Operands, save: bool, instruction_set: str) -> tuple[Tensor, ...]:
    """y, h and gates, channels_last; h (B, F, H, W) and gates (B, 2F, H, W) are for the backward:
    without `save` they have no elements."""
    x, f = given.x, given.x.shape[1]
    if not save:
        return empty_channels_last(x, f), x.new_empty(0), x.new_empty(0)
    return empty_channels_last(x, f), empty_channels_last(x, f), empty_channels_last(x, 2 * f)


def _forward(
    given: Operands, settings: Settings, save: bool, instruction_set: str
) -> tuple[Tensor, ...]:
    y, h, gates = outputs = _outputs(given, save, instruction_set)
    tensors: dict[str, Any] = _ordered(given)._asdict() | {"y": y}
    if save:
        tensors |= {"h": h, "gates": gates}
    numbers = _numbers(given, settings)
    _extension.extension().gated_resnet_forward(tensors, *numbers, instruction_set)
    return outputs


def _backward(
    grad_y: Tensor,
    saved: Sequence[Tensor],
    given: Operands,
    settings: Settings,
    instruction_set: str,
    needs: Sequence[bool],
) -> dict[str, Tensor]:
    given = _ordered(given)
    tensors: dict[str, Any] = given._asdict()
    grads = {
        name: empty_gradient(given, name, (True, True, True))
        for name, tensor in tensors.items()
        if tensor is not None and FIELDS[name].gradient
    }
    # Hooks on saved tensors may have brought them back in another memory order.
    for name, tensor in zip(("grad_y", "h", "gates"), (grad_y, *saved), strict=True):
        tensors[name] = tensor.contiguous(memory_format=torch.channels_last)
    written = {f"grad_{name}": grad for name, grad in grads.items()}
    numbers = _numbers(given, settings)
    _extension.extension().gated_resnet_backward(tensors | written, *numbers, instruction_set)
    if given.bias_nin is not None:  # it is added to h as bias_in is
        grads["bias_nin"] = grads["bias_in"].clone()
    return {name: grad for name, grad in grads.items() if is_needed(name, needs)}


def _ordered(given: Operands) -> Operands:
    """The operands in the memory orders of the field table."""
    kernels = (given.conv_in, given.conv_out)
    last = all(conv.is_contiguous(memory_format=torch.channels_last) for conv in kernels)
    of_layout = {
        "ChannelsLast": torch.channels_last,
        "Kernel": torch.channels_last if last else torch.contiguous_format,
        "Contiguous": torch.contiguous_format,
    }
    return Operands._make(
        None if tensor is None else tensor.contiguous(memory_format=of_layout[FIELDS[name].layout])
        for name, tensor in given._asdict().items()
    )


def _numbers(given: Operands, settings: Settings) -> tuple[int, int, int, int, int, float, int]:
    """pad_top, pad_left, layer, first_image, keep_from, scale and threads for the extension."""
    taps = taps_of(given.conv_in, settings.shift)
    layer, least, scale, first_image = settings.numbers()
    return taps.top, taps.left, layer, first_image, least, scale, torch.get_num_threads()


gated_resnet_native, forward_op, backward_op = differentiable(
    "gated_resnet", ("str instruction_set", "auto"), 2, _outputs, _forward, _backward, _ordered
)
