"""The Triton op of the gated resnet; `gated_resnet` checks the arguments and selects it."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ..kernels.geometry import empty_channels_last, packed_sizes
from .dispatch import Grads, register_op, wanted_gradients
from .gated_resnet_operands import (
    SETTINGS,
    TENSORS,
    Operands,
    Settings,
    empty_gradient,
    grouped,
    ordered,
)


def gated_resnet_triton(operands: Operands, settings: Settings) -> Tensor:
    """y (B, F, H, W), channels_last."""
    save = any(wanted_gradients(operands))
    return differentiable(save, *operands, *settings, save)


def _forward(
    compute: bool, operands: Operands, settings: Settings, save: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The results of `kernels.forward`: y, h, the packed weights and the gates."""
    if compute:
        from ..kernels import gated_resnet as kernels

        return kernels.forward(ordered(operands), settings, save)
    x, f = operands.x, operands.x.shape[1]
    packed = x.new_empty(sum(packed_sizes(operands, True)) if save else 0)
    gates = empty_channels_last(x, 2 * f) if save else x.new_empty(0)
    return empty_channels_last(x, f), empty_channels_last(x, f), packed, gates


def _backward(compute: bool, grad_y: Tensor, *arguments: Any) -> Grads:
    """arguments: the results of `_forward` but y, its arguments, and which gradients are needed."""
    *saved, operands, settings, _, needs = arguments
    operands = ordered(operands)
    if not compute:
        return [
            empty_gradient(name, tensor) if need and tensor is not None else None
            for name, tensor, need in zip(Operands._fields, operands, needs, strict=True)
        ]
    from ..kernels import gated_resnet as kernels

    groups = kernels.Needs(needs[0], any(needs[1:3]), any(needs[3:]))
    grads = kernels.backward(grad_y, saved, operands, settings, groups)
    return [
        grads.get(name) if need else None
        for name, need in zip(Operands._fields, needs, strict=True)
    ]


differentiable, forward_op, backward_op = register_op(
    "gated_resnet_triton",
    TENSORS,
    SETTINGS,
    3,
    _forward,
    _backward,
    group=grouped,
)
