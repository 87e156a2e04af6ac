"""The gated resnets of the extension and of Triton as one op; `gated_resnet` checks its arguments.

Operands are in the memory formats of the field table, and gradients in those of their operands.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .. import _extension
from ..kernels.geometry import Taps, channels_last, empty_channels_last, empty_weight, packed_sizes
from .dispatch import Grads, Impl, register_op, wanted_gradients
from .gated_resnet_operands import FIELDS, Operands, Settings

MAX_TAPS = 64  # of the extension
WEIGHTS = {*(name for name, field in FIELDS.items() if field.is_parameter), "bias_nin"}


def gated_resnet_op(operands: Operands, settings: Settings, impl: Impl) -> Tensor:
    """y (B, F, H, W), channels_last, by impl "native" or "triton"."""
    save = any(wanted_gradients(operands))
    return forward_op(*operands, *settings, impl, save)[0]


def _forward(compute: bool, *arguments: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """y, h (B, F, H, W), gates (B, 2F, H, W), channels_last, and the packed weights of Triton; all
    but y are empty unless a backward follows (`save`)."""
    operands, settings, impl, save = _grouped(arguments)
    x, f, triton = operands.x, operands.x.shape[1], impl == "triton"
    y, written = empty_channels_last(x, f), {}
    if save:
        written = {"h": empty_channels_last(x, f), "gates": empty_channels_last(x, 2 * f)}
    packed = x.new_empty(sum(packed_sizes(operands, save)) if triton and (save or compute) else 0)
    if compute and triton:
        from ..kernels import gated_resnet as kernels

        kernels.forward(ordered(operands), settings, packed, y, **written)
    elif compute:
        tensors = ordered(operands)._asdict() | {"y": y} | written
        _extension.extension().gated_resnet_forward(tensors, *_numbers(operands, settings))
    if not save:
        return y, x.new_empty(0), x.new_empty(0), x.new_empty(0)
    return y, *written.values(), packed


def _backward(
    compute: bool, grad_y: Tensor, h: Tensor, gates: Tensor, packed: Tensor, *arguments: Any
) -> Grads:
    """arguments: those of `_forward`, and which gradients are needed."""
    operands, settings, impl, _ = _grouped(arguments[:-1])
    needs, operands = arguments[-1], ordered(operands)
    tensors = operands._asdict()
    needed = {name for name, need in zip(tensors, needs, strict=True) if need}
    frozen = needed.isdisjoint(WEIGHTS)
    grads = {
        name: empty_gradient(name, tensor)
        for name, tensor in tensors.items()
        if tensor is not None and name != "seed" and not (frozen and name in WEIGHTS)
    }
    if compute:
        # Hooks on saved tensors may return them in another memory order.
        grad_y, h, gates = map(channels_last, (grad_y, h, gates))
        if impl == "triton":
            from ..kernels import gated_resnet as kernels

            kernels.backward(grad_y, h, gates, packed.contiguous(), operands, settings, grads)
        else:
            tensors |= {"grad_y": grad_y, "h": h, "gates": gates}
            tensors |= {f"grad_{n}": grad for n, grad in grads.items() if n != "bias_nin"}
            _extension.extension().gated_resnet_backward(tensors, *_numbers(operands, settings))
            if "bias_nin" in grads:  # it is added to h as bias_in is
                grads["bias_nin"].copy_(grads["bias_in"])
    return [grads.get(name) if name in needed else None for name in Operands._fields]


def ordered(operands: Operands) -> Operands:
    """The operands in the memory formats of the field table."""
    kernels = (operands.conv_in, operands.conv_out)
    last = all(conv.is_contiguous(memory_format=torch.channels_last) for conv in kernels)
    formats = {
        "ChannelsLast": torch.channels_last,
        "Kernel": torch.channels_last if last else torch.contiguous_format,
        "Contiguous": torch.contiguous_format,
    }
    return Operands._make(
        None if tensor is None else tensor.contiguous(memory_format=formats[FIELDS[name].layout])
        for name, tensor in operands._asdict().items()
    )


def empty_gradient(name: str, tensor: Tensor) -> Tensor:
    """An uninitialised gradient in the memory format that the backward writes."""
    if FIELDS[name].layout == "ChannelsLast":
        return empty_channels_last(tensor, tensor.shape[1])
    return empty_weight(tensor)


def _grouped(arguments: Sequence[Any]) -> tuple[Operands, Settings, Impl, bool]:
    n = len(Operands._fields)
    *settings, impl, save = arguments[n:]
    return Operands(*arguments[:n]), Settings(*settings), impl, save


def _numbers(operands: Operands, settings: Settings) -> tuple[int, int, int, int, int, float, int]:
    taps = Taps.of(operands.conv_in, settings.shift)
    place = taps.top, taps.left, settings.layer, settings.first_image
    return *place, settings.keep_from, settings.scale, torch.get_num_threads()


forward_op, backward_op = register_op(
    "gated_resnet",
    [
        f"Tensor{'?' * (FIELDS[name].optional or bool(FIELDS[name].conditions))} {name}"
        for name in Operands._fields
    ],
    "str shift, float dropout, int layer, int first_image, str impl, bool save",
    3,
    _forward,
    _backward,
)
