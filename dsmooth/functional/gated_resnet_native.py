"""The native op of the gated block; `gated_resnet` checks arguments and chooses it."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from .. import _extension
from .dispatch import empty_channels_last, refuse_second_derivative
from .dropout import keep_from
from .taps import padding_of

MAX_SKIPS = 2


class Operands(NamedTuple):
    """What the block takes beside x: tensors as in `gated_resnet`, then its settings.

    Each is an argument of its own of the ops: lists of tensors are taken apart in Python by torch,
    at every call.
    """

    skip: Tensor | None
    skip_2: Tensor | None
    conv_in: Tensor
    bias_in: Tensor
    conv_out: Tensor
    bias_out: Tensor
    nin: Tensor | None
    bias_nin: Tensor | None
    gain_in: Tensor | None
    gain_out: Tensor | None
    gain_nin: Tensor | None
    seed: Tensor | None
    shift: str
    dropout: float
    layer: int

    @property
    def skips(self) -> list[Tensor]:
        return [skip for skip in (self.skip, self.skip_2) if skip is not None]

    def dense(self) -> Operands:
        """As the extension takes them: skips channels_last, the rest dense.

        Both kernels lie in one memory order, contiguous or channels_last.
        """
        conv_in, conv_out = self.conv_in, self.conv_out
        if not all(conv.is_contiguous(memory_format=_LAST) for conv in (conv_in, conv_out)):
            conv_in, conv_out = conv_in.contiguous(), conv_out.contiguous()
        vectors = (self.bias_in, self.bias_out, self.bias_nin, *self[8:11])
        bias_in, bias_out, bias_nin, *gains = (v if v is None else v.contiguous() for v in vectors)
        skips = (skip if skip is None else _channels_last(skip) for skip in self[:2])
        nin = self.nin if self.nin is None else self.nin.contiguous()
        tensors = (conv_in, bias_in, conv_out, bias_out, nin, bias_nin, *gains)
        return Operands._make([*skips, *tensors, *self[11:]])


_LAST = torch.channels_last
_SCHEMA = """
    Tensor? skip, Tensor? skip_2, Tensor conv_in, Tensor bias_in, Tensor conv_out, Tensor bias_out,
    Tensor? nin, Tensor? bias_nin, Tensor? gain_in, Tensor? gain_out, Tensor? gain_nin,
    Tensor? seed, str shift, float dropout, int layer"""


def operands(
    skips: list[Tensor],
    weights: list[Tensor],
    gains: list[Tensor],
    seed: Tensor | None,
    shift: str,
    dropout: float,
    layer: int,
) -> Operands:
    """The operands from lists.

    weights: conv_in, its bias, conv_out, its bias and, with skips, nin_skip and its bias; gains:
    none, or those of the convolutions; float64 for float64 x, else float32.
    """
    given: list[Any] = [*_filled(skips, MAX_SKIPS), *_filled(weights, 6), *_filled(gains, 3)]
    return Operands._make([*given, seed, shift, dropout, layer])


def gated_resnet_native(
    x: Tensor, given: Operands, save: bool = True, instruction_set: str = "auto"
) -> tuple[Tensor, Tensor, Tensor]:
    """(y, h, gates), channels_last; the last two, (B, F, H, W) and (B, 2F, H, W), for the backward.

    Without `save` h and gates have no elements. Raises ValueError for an unknown instruction set.
    """
    return forward_op(x, *given, save, instruction_set)


@torch.compiler.assume_constant_result
def native_obstacle(device_type: str, dtype: torch.dtype) -> str | None:
    """Why the extension cannot compute this; None if it can."""
    if device_type != "cpu":
        return f"it runs on cpu tensors, got {device_type}"
    if dtype not in (torch.float32, torch.float64, torch.bfloat16):
        return f"it computes in float32, float64 and bfloat16, got {dtype}"
    return _extension.unavailable_reason()


@torch.library.custom_op(
    "dsmooth::gated_resnet",
    mutates_args=(),
    schema=f"(Tensor x, {_SCHEMA}, bool save, str instruction_set) -> (Tensor, Tensor, Tensor)",
)
def forward_op(x: Tensor, *rest: Any) -> tuple[Tensor, Tensor, Tensor]:
    *given, _save, instruction_set = rest
    x, dense = _channels_last(x), Operands(*given).dense()
    outputs = _outputs(x, *rest)
    tensors = _addresses([x, *outputs, *dense.skips])
    _call("gated_block_forward", x, dense, tensors, instruction_set)
    return outputs


@forward_op.register_fake
def _outputs(x: Tensor, *rest: Any) -> tuple[Tensor, Tensor, Tensor]:
    *_, save, _ = rest
    f = x.shape[1]
    if not save:
        return empty_channels_last(x, f), x.new_empty(0), x.new_empty(0)
    return empty_channels_last(x, f), empty_channels_last(x, f), empty_channels_last(x, 2 * f)


@torch.library.custom_op(
    "dsmooth::gated_resnet_backward",
    mutates_args=(),
    schema=f"(Tensor grad_y, Tensor x, Tensor h, Tensor gates, {_SCHEMA}, str instruction_set) -> "
    f"({', '.join(['Tensor'] * 11)})",
)
def backward_op(
    grad_y: Tensor, x: Tensor, h: Tensor, gates: Tensor, *rest: Any
) -> tuple[Tensor, ...]:
    """Gradients of x, conv_in, bias_in, conv_out, bias_out, nin, three gains, two skips.

    Those of absent operands have no elements; bias_nin's is bias_in's.
    """
    *given, instruction_set = rest
    grad_y, x, dense = _channels_last(grad_y), _channels_last(x), Operands(*given).dense()
    grads = _gradients(grad_y, x, h, gates, *dense, instruction_set)
    tensors = _addresses([grad_y, x, h, gates, *grads[:9]])
    for skip, grad in zip(dense.skips, grads[9:], strict=False):
        tensors += _addresses([skip, grad])
    _call("gated_block_backward", x, dense, tensors, instruction_set)
    return grads


@backward_op.register_fake
def _gradients(
    grad_y: Tensor, x: Tensor, h: Tensor, gates: Tensor, *rest: Any
) -> tuple[Tensor, ...]:
    dense = Operands(*rest[:-1]).dense()
    alike = (
        *(dense.conv_in, dense.bias_in, dense.conv_out, dense.bias_out, dense.nin),
        *(dense.gain_in, dense.gain_out, dense.gain_nin, dense.skip, dense.skip_2),
    )
    grads = (x.new_empty(0) if t is None else torch.empty_like(t) for t in alike)
    return empty_channels_last(x, x.shape[1]), *grads


def _call(name: str, x: Tensor, given: Operands, tensors: list[int], instruction_set: str) -> None:
    batch, f, rows, cols = x.shape
    kh, kw = given.conv_in.shape[2:]
    left, _, top, _ = padding_of(kh, kw, given.shift)
    getattr(_extension.extension(), name)(
        str(x.dtype).removeprefix("torch."),
        [batch, rows, cols, f, kh, kw, top, left],
        [skip.shape[1] for skip in given.skips],
        not given.conv_in.is_contiguous(),
        0 if given.seed is None else given.seed.data_ptr(),
        given.layer,
        keep_from(given.dropout),
        1 / (1 - given.dropout),
        _addresses(given[2:11]),
        tensors,
        torch.get_num_threads(),
        instruction_set,
    )


def _save_for_backward(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    x, *rest = inputs
    given, instruction_set = Operands(*rest[:-2]), rest[-1]
    _, h, gates = output
    ctx.mark_non_differentiable(h, gates)
    ctx.set_materialize_grads(False)
    ctx.settings = (given.shift, given.dropout, given.layer, instruction_set)
    ctx.save_for_backward(x, h, gates, *given[:12])


def _backward(ctx: Any, grad_y: Tensor | None, *_: Tensor | None) -> tuple[Tensor | None, ...]:
    rest = (None,) * 6  # seed, settings, save, instruction_set
    if grad_y is None:
        return (None,) * 12 + rest
    tensors = ctx.saved_tensors
    x, *grads, skip, skip_2 = backward_op(grad_y, *tensors, *ctx.settings)
    grads.insert(5, grads[1].clone())  # bias_nin's
    given = tensors[3:14]
    chosen = zip([skip, skip_2, *grads], given, strict=True)
    return x, *(None if t is None else grad for grad, t in chosen), *rest


forward_op.register_autograd(_backward, setup_context=_save_for_backward)
backward_op.register_autograd(refuse_second_derivative("native gated block"))


def _channels_last(tensor: Tensor) -> Tensor:
    return tensor.contiguous(memory_format=_LAST)


def _addresses(tensors: Any) -> list[int]:
    return [0 if tensor is None else tensor.data_ptr() for tensor in tensors]


def _filled(tensors: list[Tensor], count: int) -> list[Tensor | None]:
    return [*tensors, *[None] * (count - len(tensors))]
