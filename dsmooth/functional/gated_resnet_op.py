"""The gated resnets of the extension and of Triton as one op; `gated_resnet` checks its arguments.

Operands are in the memory formats of the field table, and gradients in those of their operands.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .. import _extension
from .dispatch import Grads, Impl, register_op
from .gated_resnet_operands import FIELDS, Operands, Settings
from .shifted_conv import padding_of

MAX_TAPS = 64  # of the extension
WEIGHTS = {*(name for name, field in FIELDS.items() if field.is_parameter), "bias_nin"}


def _forward(compute: bool, *arguments: Any) -> tuple[Tensor, ...]:
    """y, h (B, F, H, W), gates (B, 2F, H, W), channels_last, and the packed weights of Triton; all
    but y are empty unless a backward follows (`save`)."""
    operands, settings, impl, save = _grouped(arguments)
    x = operands["x"]
    batch, filters, rows, cols = x.shape
    results = {"y": torch.empty_like(x, memory_format=torch.channels_last)}
    if save:
        results["h"] = torch.empty_like(results["y"])
        results["gates"] = x.new_empty((batch, rows, cols, 2 * filters)).permute(0, 3, 1, 2)
    if impl == "triton":
        from ..kernels.geometry import packed_sizes

        results["packed"] = x.new_empty(sum(packed_sizes(operands, save)))
    if compute:
        _run("forward", impl, ordered(operands) | results, settings)
    for name in ("h", "gates", "packed"):
        if not save or name not in results:
            results[name] = x.new_empty(0)
    return tuple(results[name] for name in ("y", "h", "gates", "packed"))


def _backward(
    compute: bool, grad_y: Tensor, h: Tensor, gates: Tensor, packed: Tensor, *arguments: Any
) -> Grads:
    """arguments: those of `_forward`, and which gradients are needed."""
    operands, settings, impl, _ = _grouped(arguments[:-1])
    needed = {name for name, need in zip(FIELDS, arguments[-1], strict=True) if need}
    frozen = needed.isdisjoint(WEIGHTS)
    tensors = ordered(operands)
    grads = {
        name: torch.empty_like(tensor)
        for name, tensor in tensors.items()
        if name != "seed" and not (frozen and name in WEIGHTS)
    }
    if compute:
        # Hooks on saved tensors may return them in another memory order.
        for name, image in (("grad_y", grad_y), ("h", h), ("gates", gates)):
            tensors[name] = image.contiguous(memory_format=torch.channels_last)
        tensors |= {f"grad_{name}": grad for name, grad in grads.items()}
        if impl == "triton":
            tensors["packed"] = packed.contiguous()
            _run("backward", impl, tensors, settings)
        else:
            bias_nin = tensors.pop("grad_bias_nin", None)
            _run("backward", impl, tensors, settings)
            if bias_nin is not None:  # it is added to h as bias_in is
                bias_nin.copy_(grads["bias_in"])
    return [grads.get(name) if name in needed else None for name in FIELDS]


def _run(direction: str, impl: Impl, tensors: dict[str, Tensor], settings: Settings) -> None:
    """Have the extension or the Triton kernels write results and gradients, which are `tensors`."""
    top, left = padding_of(tensors["conv_in"], settings.shift)
    numbers = {
        "pad_top": top,
        "pad_left": left,
        "layer": settings.layer,
        "first_image": settings.first_image,
        "keep_from": settings.keep_from,
        "scale": settings.scale,
    }
    if impl == "triton":
        from ..kernels import gated_resnet as kernels

        getattr(kernels, direction)(tensors, **numbers)
    else:
        native = getattr(_extension.extension(), f"gated_resnet_{direction}")
        native(tensors, **numbers, threads=torch.get_num_threads())


def ordered(operands: Operands) -> Operands:
    """The operands in the memory formats of the field table."""
    kernels = (operands["conv_in"], operands["conv_out"])
    last = all(conv.is_contiguous(memory_format=torch.channels_last) for conv in kernels)
    formats = {
        "ChannelsLast": torch.channels_last,
        "Kernel": torch.channels_last if last else torch.contiguous_format,
        "Contiguous": torch.contiguous_format,
    }
    return {
        name: tensor.contiguous(memory_format=formats[FIELDS[name].layout])
        for name, tensor in operands.items()
    }


def _grouped(arguments: Sequence[Any]) -> tuple[Operands, Settings, Impl, bool]:
    *settings, impl, save = arguments[len(FIELDS) :]
    tensors = zip(FIELDS, arguments, strict=False)
    return {name: t for name, t in tensors if t is not None}, Settings(*settings), impl, save


forward_op, backward_op = register_op(
    "gated_resnet",
    [
        f"Tensor{'?' * (field.optional or bool(field.conditions))} {name}"
        for name, field in FIELDS.items()
    ],
    "str shift, float dropout, int layer, int first_image, str impl, bool save",
    3,
    _forward,
    _backward,
)
