"""The Triton op of the gated resnet; `gated_resnet` checks arguments and chooses it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor

from ..kernels.geometry import empty_channels_last, packed_sizes
from .gated_resnet_operands import Operands, Settings, register_gated_resnet


def _outputs(given: Operands, save: bool, keep: bool) -> tuple[Tensor, ...]:
    """y, h, packed and gates; all but y for the backward.

    y and h, the first convolution's output, are (B, F, H, W) channels_last. packed: the weights in
    x's dtype, in the order of the kernels; without `save` it has no elements. gates: A and G,
    (B, 2F, H, W) channels_last; without `keep` it has no elements, and they are computed again.
    """
    x, f = given.x, given.x.shape[1]
    packed = x.new_empty(sum(packed_sizes(given, True)) if save else 0)
    gates = empty_channels_last(x, 2 * f) if keep else x.new_empty(0)
    return empty_channels_last(x, f), empty_channels_last(x, f), packed, gates


def _forward(given: Operands, settings: Settings, save: bool, keep: bool) -> tuple[Tensor, ...]:
    from ..kernels import gated_resnet as kernels

    return kernels.forward(given, settings, save, keep)


def _backward(
    grad_y: Tensor,
    saved: Sequence[Tensor],
    given: Operands,
    settings: Settings,
    keep: bool,
    needs: Sequence[bool],
) -> Mapping[str, Tensor]:
    from ..kernels import gated_resnet as kernels

    wanted = kernels.Needs(needs[0], any(needs[1:3]), any(needs[3:]))
    return kernels.backward(grad_y, saved, given, settings, wanted)


gated_resnet_triton, forward_op, backward_op = register_gated_resnet(
    "gated_resnet_triton", ("bool keep", False), 3, _outputs, _forward, _backward
)
