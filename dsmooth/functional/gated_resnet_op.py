"""The gated resnets of the extension and of Triton as one op; `gated_resnet` checks its arguments.

Operands are in the memory formats of the field table, and gradients in those of their operands.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from .. import _extension
from .dispatch import Backend, Impl, Needs, Tensors, native_obstacle, register_op, triton_obstacle
from .gated_resnet_operands import GatedResnetCall, Operands, dtype_of
from .shifted_conv import padding_of

MAX_TAPS = 64  # of the extension


class _Shared:
    """What both implementations have in common: dtypes, memory formats and saved tensors."""

    def cast(self, operands: Operands) -> Operands:
        dtype = dtype_of(operands)
        exact = torch.float64 if dtype == torch.float64 else torch.float32
        dtypes = {"Image": dtype, "Weight": exact, "Int64": torch.int64}
        pairs = operands.zipped()
        cast: list[Any] = [t if t is None else t.to(dtypes[field.dtype]) for t, field in pairs]
        return Operands(*cast)

    def packed_size(self, operands: Operands) -> int:
        """Number of packed weights that the forward saves."""
        return 0

    def results(self, operands: Operands, call: GatedResnetCall) -> Tensors:
        """y, h (B, F, H, W), gates (B, 2F, H, W), channels_last, and packed weights; all but y are
        empty unless a backward follows."""
        x = operands.x
        batch, filters, rows, cols = x.shape
        y = torch.empty_like(x, memory_format=torch.channels_last)
        if not call.save:
            return y, x.new_empty(0), x.new_empty(0), x.new_empty(0)
        gates = x.new_empty((batch, rows, cols, 2 * filters)).permute(0, 3, 1, 2)
        return y, torch.empty_like(y), gates, x.new_empty(self.packed_size(operands))

    def gradients(self, operands: Operands, call: GatedResnetCall, needs: Needs) -> Operands:
        """Those of all images, and of all parameters or of none."""
        formats, pairs = _formats(operands), operands.zipped()
        frozen = not any(
            n and field.is_parameter for n, (_, field) in zip(needs, pairs, strict=True)
        )
        return Operands._make([
            None
            if t is None or field.dtype == "Int64" or (frozen and field.is_parameter)
            else torch.empty_like(t, memory_format=formats[field.layout])
            for t, field in pairs
        ])  # fmt: skip


class Native(_Shared):
    """The extension, which takes tensors by the names of the field table."""

    def obstacle(self, operands: Operands) -> str | None:
        taps = operands.conv_in[0, 0].numel()
        if taps > MAX_TAPS:
            return f"the extension supports kernels of at most {MAX_TAPS} taps, got {taps}"
        return native_obstacle(operands.x.device.type, dtype_of(operands))

    def forward(self, operands: Operands, call: GatedResnetCall, results: Tensors) -> None:
        y, h, gates, _ = results
        written = {"y": y, "h": h, "gates": gates} if call.save else {"y": y}
        tensors = ordered(operands).named() | written
        _extension.extension().gated_resnet_forward(tensors, **self._numbers(operands, call))

    def backward(
        self,
        operands: Operands,
        call: GatedResnetCall,
        saved: Tensors,
        grad: Tensor,
        grads: Operands,
    ) -> None:
        grad_y, h, gates = map(_channels_last, (grad, *saved[:2]))
        read = ordered(operands).named() | {"grad_y": grad_y, "h": h, "gates": gates}
        written = grads._replace(bias_nin=None).named("grad_")
        _extension.extension().gated_resnet_backward(
            read | written, **self._numbers(operands, call)
        )
        if grads.bias_nin is not None:  # it is added to h as bias_in is
            grads.bias_nin.copy_(grads.bias_in)

    def _numbers(self, operands: Operands, call: GatedResnetCall) -> dict[str, float]:
        top, left = padding_of(operands.conv_in, call.shift)
        return {
            "pad_top": top, "pad_left": left, "layer": call.layer, "first_image": call.first_image,
            "keep_from": call.keep_from, "scale": call.scale, "threads": torch.get_num_threads(),
        }  # fmt: skip


class Triton(_Shared):
    """The Triton kernels, which pack the weights."""

    def obstacle(self, operands: Operands) -> str | None:
        return triton_obstacle(operands.x.device, dtype_of(operands))

    def packed_size(self, operands: Operands) -> int:
        from ..kernels.geometry import packed_sizes

        return sum(packed_sizes(_grouped(operands), adjoint=True))

    def forward(self, operands: Operands, call: GatedResnetCall, results: Tensors) -> None:
        from ..kernels import gated_resnet as kernels

        y, *saved = results
        kernels.forward(
            *_arguments(operands, call), y, kernels.Saved(*saved) if call.save else None
        )

    def backward(
        self,
        operands: Operands,
        call: GatedResnetCall,
        saved: Tensors,
        grad: Tensor,
        grads: Operands,
    ) -> None:
        from ..kernels import gated_resnet as kernels

        grad_y, h, gates = map(_channels_last, (grad, *saved[:2]))
        kept = kernels.Saved(h, gates, saved[2].contiguous())
        kernels.backward(*_arguments(operands, call), kept, grad_y, _grouped(grads))


def _arguments(operands: Operands, call: GatedResnetCall) -> tuple[Any, ...]:
    """The tensors, taps and dropout of the kernels."""
    from ..kernels.geometry import Dropout, Taps

    taps = Taps(*operands.conv_in.shape[2:], *padding_of(operands.conv_in, call.shift))
    numbers = call.layer, call.first_image, call.keep_from, call.scale
    return _grouped(ordered(operands)), taps, Dropout(operands.seed, *numbers)


def _grouped(of: Operands) -> Any:
    """Operands, or their gradients, as the kernels take them."""
    from ..kernels.geometry import Tensors, Weight

    weights = (
        (of.conv_in, of.bias_in, of.gain_in),
        (of.conv_out, of.bias_out, of.gain_out),
        (of.nin_skip, of.bias_nin, of.gain_nin),
    )
    images = tuple([image for image in of[:3] if image is not None])
    return Tensors(images, tuple([Weight(*w) for w in weights if w[0] is not None]), of.image_bias)


def _channels_last(image: Tensor) -> Tensor:
    """Hooks on saved tensors may return them in another memory order."""
    return image.contiguous(memory_format=torch.channels_last)


def _formats(operands: Operands) -> dict[str, torch.memory_format]:
    """By the names of the field table."""
    kernels = operands.conv_in, operands.conv_out
    last = all(conv.is_contiguous(memory_format=torch.channels_last) for conv in kernels)
    return {
        "ChannelsLast": torch.channels_last,
        "Kernel": torch.channels_last if last else torch.contiguous_format,
        "Contiguous": torch.contiguous_format,
    }


def ordered(operands: Operands) -> Operands:
    """The operands in the memory formats of the field table."""
    formats = _formats(operands)
    return Operands._make([
        t if t is None else t.contiguous(memory_format=formats[field.layout])
        for t, field in operands.zipped()
    ])  # fmt: skip


BACKENDS: Mapping[Impl, Backend[Operands, GatedResnetCall, Operands]]
BACKENDS = {"native": Native(), "triton": Triton()}
forward_op, backward_op = register_op("gated_resnet", Operands, GatedResnetCall, 4, BACKENDS)
