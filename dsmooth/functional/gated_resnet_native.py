"""The native op of the gated resnet; `gated_resnet` checks the arguments and selects it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .. import _extension
from ..kernels.geometry import Taps, empty_channels_last
from .dispatch import Grads, register_op, wanted_gradients
from .gated_resnet_operands import (
    FIELDS,
    SETTINGS,
    TENSORS,
    Operands,
    Settings,
    empty_gradient,
    grouped,
    ordered,
)

MAX_TAPS = 64
WEIGHTS = {*(name for name, field in FIELDS.items() if field.is_parameter), "bias_nin"}


def gated_resnet_native(operands: Operands, settings: Settings) -> Tensor:
    """y (B, F, H, W), channels_last."""
    save = any(wanted_gradients(operands))
    return differentiable(save, *operands, *settings, save)


def _forward(
    compute: bool, operands: Operands, settings: Settings, save: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """y, h (B, F, H, W) and gates (B, 2F, H, W), channels_last; only y without `save`."""
    x, f = operands.x, operands.x.shape[1]
    y, h, gates = empty_channels_last(x, f), x.new_empty(0), x.new_empty(0)
    written = {"y": y}
    if save:
        h, gates = empty_channels_last(x, f), empty_channels_last(x, 2 * f)
        written |= {"h": h, "gates": gates}
    if compute:
        _extension.extension().gated_resnet_forward(
            ordered(operands)._asdict() | written, *_numbers(operands, settings)
        )
    return y, h, gates


def _backward(
    compute: bool,
    grad_y: Tensor,
    h: Tensor,
    gates: Tensor,
    operands: Operands,
    settings: Settings,
    save: bool,
    needs: Sequence[bool],
) -> Grads:
    tensors = ordered(operands)._asdict()
    needed = {name for name, need in zip(tensors, needs, strict=True) if need}
    frozen = needed.isdisjoint(WEIGHTS)
    grads = {
        name: empty_gradient(name, tensor)
        for name, tensor in tensors.items()
        if tensor is not None and FIELDS[name].gradient and not (frozen and name in WEIGHTS)
    }
    if compute:
        # Hooks on saved tensors may return them in another memory order.
        for name, tensor in (("grad_y", grad_y), ("h", h), ("gates", gates)):
            tensors[name] = tensor.contiguous(memory_format=torch.channels_last)
        tensors |= {f"grad_{name}": grad for name, grad in grads.items()}
        _extension.extension().gated_resnet_backward(tensors, *_numbers(operands, settings))
    if "bias_nin" in needed:  # it is added to h as bias_in is
        grads["bias_nin"] = grads["bias_in"].clone()
    return [grads.get(name) if name in needed else None for name in Operands._fields]


def _numbers(operands: Operands, settings: Settings) -> tuple[int, int, int, int, int, float, int]:
    taps = Taps.of(operands.conv_in, settings.shift)
    place = taps.top, taps.left, settings.layer, settings.first_image
    return *place, settings.keep_from, settings.scale, torch.get_num_threads()


differentiable, forward_op, backward_op = register_op(
    "gated_resnet",
    TENSORS,
    SETTINGS,
    2,
    _forward,
    _backward,
    group=grouped,
)
