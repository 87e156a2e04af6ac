"""The native op of the gated resnet; `gated_resnet` checks arguments and chooses it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .. import _extension
from ..kernels.geometry import Taps, empty_channels_last
from .gated_resnet_operands import FIELDS, Operands, Settings, empty_gradient, register_gated_resnet

MAX_TAPS = 64
WEIGHTS = {*(name for name, field in FIELDS.items() if field.of_weights), "bias_nin"}


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
    outputs = _outputs(given, save, instruction_set)
    written = dict(zip(("y", "h", "gates") if save else ("y",), outputs, strict=False))
    _call("forward", _ordered(given)._asdict() | written, settings, instruction_set)
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
    needed = {name for name, need in zip(tensors, needs, strict=True) if need}
    frozen = needed.isdisjoint(WEIGHTS)
    grads = {
        name: empty_gradient(name, given)
        for name, tensor in tensors.items()
        if tensor is not None and FIELDS[name].gradient and not (frozen and name in WEIGHTS)
    }
    # Hooks on saved tensors may have brought them back in another memory order.
    for name, tensor in zip(("grad_y", "h", "gates"), (grad_y, *saved), strict=True):
        tensors[name] = tensor.contiguous(memory_format=torch.channels_last)
    written = {f"grad_{name}": grad for name, grad in grads.items()}
    _call("backward", tensors | written, settings, instruction_set)
    if "bias_nin" in needed:  # it is added to h as bias_in is
        grads["bias_nin"] = grads["bias_in"].clone()
    return grads


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


def _call(
    direction: str, tensors: dict[str, Any], settings: Settings, instruction_set: str
) -> None:
    taps = Taps.of(tensors["conv_in"], settings.shift)
    numbers = taps.top, taps.left, settings.layer, settings.first_image
    dropout = settings.keep_from, settings.scale
    function = getattr(_extension.extension(), f"gated_resnet_{direction}")
    function(tensors, *numbers, *dropout, torch.get_num_threads(), instruction_set)


gated_resnet_native, forward_op, backward_op = register_gated_resnet(
    "gated_resnet", ("str instruction_set", "auto"), 2, _outputs, _forward, _backward, _ordered
)
