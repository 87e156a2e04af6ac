"""The Triton op of the gated resnet; `gated_resnet` checks arguments and chooses it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..kernels.geometry import empty_channels_last, packed_sizes
from .dispatch import refuse_second_derivative, register_op
from .gated_resnet_operands import (
    FIELDS,
    SCHEMA,
    Operands,
    Settings,
    apart,
    empty_gradient,
    needs_gradient,
)
from .shifted_conv import taps_of

# The operands that have gradients, the results of the backward. bias_nin has one of its own, though
# with the same numbers as bias_in.
_GRADIENTS = tuple(n for n in Operands._fields if FIELDS[n].gradient or n == "bias_nin")


def gated_resnet_triton(given: Operands, settings: Settings, keep: bool = False) -> Tensor:
    """y (B, F, H, W), channels_last. keep: whether A and G are kept for the backward."""
    if needs_gradient(given):
        return _GatedResnet.apply(*given, *settings, keep)
    return forward_op(*given, *settings, False, False)[0]


def _forward(*args: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(y, h, packed, gates); all but y for the backward.

    y and h, the first convolution's output, are (B, F, H, W) channels_last. packed: the weights in
    x's dtype, in the order of the kernels; without `save` it has no elements. gates: A and G,
    (B, 2F, H, W) channels_last; without `keep` it has no elements, and they are computed again.
    """
    from ..kernels import gated_resnet as kernels

    given, settings, (save, keep) = apart(args)
    x = given.x
    if x.numel() == 0:
        return _outputs(*args)
    taps, dropout = taps_of(given.conv_in, settings.shift), settings.numbers()
    y, saved = kernels.forward(given, taps, dropout, save, keep)
    gates = x.new_empty(0) if saved.gates is None else saved.gates
    return y, saved.h, saved.packed if save else x.new_empty(0), gates


def _outputs(*args: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    given, _, (save, keep) = apart(args)
    x, f = given.x, given.x.shape[1]
    channels = [skip.shape[1] for skip in given.skips]
    packed = x.new_empty(sum(packed_sizes(given.conv_in, channels, True)) if save else 0)
    gates = empty_channels_last(x, 2 * f) if keep else x.new_empty(0)
    return empty_channels_last(x, f), empty_channels_last(x, f), packed, gates


def _compute_gradients(
    grad_y: Tensor, h: Tensor, packed: Tensor, gates: Tensor, *rest: Any
) -> tuple[Tensor, ...]:
    """The gradients _GRADIENTS; those that are not needed or have no operand have no elements."""
    from ..kernels import gated_resnet as kernels

    given, settings, needs = apart(rest)
    x = given.x
    if x.numel() == 0:
        return tuple(grad.zero_() for grad in _gradients(grad_y, h, packed, gates, *rest))
    taps, dropout = taps_of(given.conv_in, settings.shift), settings.numbers()
    saved = kernels.Saved(h, packed.contiguous(), gates if gates.numel() else None)
    grads = kernels.backward(grad_y, saved, given, taps, dropout, kernels.Needs(*needs))
    return tuple([grads[name] if name in grads else x.new_empty(0) for name in _GRADIENTS])


def _gradients(
    grad_y: Tensor, h: Tensor, packed: Tensor, gates: Tensor, *rest: Any
) -> tuple[Tensor, ...]:
    given, _, (need_x, need_skips, need_parameters) = apart(rest)
    needs = {"x": need_x, "skip": need_skips, "skip_2": need_skips}
    return tuple(
        empty_gradient(given, name, needs.get(name, need_parameters)) for name in _GRADIENTS
    )


forward_op = register_op(
    "gated_resnet_triton",
    f"({SCHEMA}, bool save, bool keep) -> (Tensor, Tensor, Tensor, Tensor)",
    _forward,
    _outputs,
)
backward_op = register_op(
    "gated_resnet_triton_backward",
    f"(Tensor grad_y, Tensor h, Tensor packed, Tensor gates, {SCHEMA}, bool need_x, "
    f"bool need_skips, bool need_parameters) -> ({', '.join(['Tensor'] * len(_GRADIENTS))})",
    _compute_gradients,
    _gradients,
    refuse_second_derivative("Triton gated resnet"),
)


class _GatedResnet(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *args: Any) -> Tensor:
        *inputs, keep = args
        y, *saved = forward_op(*inputs, True, keep)
        given, ctx.settings, _ = apart(inputs)
        ctx.save_for_backward(*saved, *given)
        return y

    @staticmethod
    def backward(ctx: Any, grad_y: Tensor) -> tuple[Tensor | None, ...]:
        wanted = ctx.needs_input_grad
        needs = wanted[0], any(wanted[1:3]), any(wanted[3:])
        h, packed, gates, *given = ctx.saved_tensors
        found = backward_op(grad_y, h, packed, gates, *given, *ctx.settings, *needs)
        grads = dict(zip(_GRADIENTS, found, strict=True))
        named = zip(Operands._fields, wanted, strict=False)
        of_operands = [grads.get(name) if want else None for name, want in named]
        return *of_operands, *(None,) * (len(wanted) - len(of_operands))
