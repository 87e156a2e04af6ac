"""Weights into the order that the matmuls read; `weight_gradients.py` is the way back.

A packed weight has a row per column of the matmul, its K numbers adjacent: (D, T C) for a
convolution, by tap and then channel, and for the adjoint (C, T D) with the taps turned around.
Columns that an epilogue takes in pairs lie side by side: A_i and G_i of a gate, the gradients of
elu(x_i) and elu(-x_i). Weight norm, w = g v / |v| per filter, is folded on the way.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from .geometry import Taps, cdiv, packed_size, packed_sizes, planes_of
from .launch import launch, plan
from .operands import Operands
from .weight_kernels import pack_kernel

BLOCK_D = 8
BLOCK_K = 256


class Packed(NamedTuple):
    """The first number of each part of a gated resnet's packed weights, in one tensor.

    hidden: (F, (T + planes) 2F), conv_in and then the skips' weight. out: (2F, T 2F). For the
    adjoints out_adjoint (2F, T 2F), in_adjoint (2F, T F) and, for each plane, nin_adjoint (2F, F).
    """

    hidden: int
    out: int
    out_adjoint: int
    in_adjoint: int
    nin_adjoint: int

    @classmethod
    def of(cls, filters: int, taps: Taps, planes: int) -> Packed:
        sizes = packed_sizes(filters, taps, planes, True)
        return cls(*itertools.accumulate(sizes[:-1], initial=0))


class Layout(NamedTuple):
    """The place of number (d, c, t) of a packed weight: offset + d' of_d + c' of_c + t of_t.

    d and c count filters and channels. The halves of one of them, `half` long, are interleaved:
    of the filters for a convolution, of the channels for its adjoint.
    """

    offset: int
    of_d: int
    of_c: int
    of_t: int
    half: int


class Order(NamedTuple):
    """The layouts of a weight: as it is read, and as it is packed for the convolution and for its
    adjoint.

    source: taps, channels, filters, channels of two skips (see `source_of`), and strides of filter,
    channel and tap.
    """

    source: tuple[int, ...]
    forward: Layout
    adjoint: Layout


def dense(v: Tensor) -> Tensor:
    """v with one stride for all taps: contiguous or channels_last as it is, else a copy."""
    if v.is_contiguous() or v.is_contiguous(memory_format=torch.channels_last):
        return v
    return v.contiguous()


def strides_of(v: Tensor) -> tuple[int, int, int]:
    """Strides of filter, channel and tap of a dense weight."""
    _, channels, rows, cols = v.shape
    stride_c, stride_t = (rows * cols, 1) if v.is_contiguous() else (1, channels)
    return channels * rows * cols, stride_c, stride_t


def pad_to_three(tensors: list[Tensor]) -> tuple[Tensor, ...]:
    """Pad to three by repeating the first; the kernels ignore the padding."""
    return (*tensors, tensors[0], tensors[0])[:3]


def orders_of(weights: Sequence[Tensor], skip_channels: Sequence[int]) -> list[Order]:
    """The orders of a gated resnet's dense weights (see `pack`)."""
    f, _, kh, kw = weights[0].shape
    taps, planes = kh * kw, planes_of(skip_channels, f)
    parts = Packed.of(f, Taps(kh, kw, 0, 0), planes)
    row, turned = (taps + planes) * 2 * f, taps - 1
    s0, s1 = (*skip_channels, 0, 0)[:2]
    of_in, of_out, *of_nin = (strides_of(weight) for weight in weights)
    orders = [
        Order(
            (taps, 2 * f, f, 0, 0, *of_in),
            Layout(parts.hidden, row, 1, 2 * f, f),
            Layout(parts.in_adjoint + turned * f, 1, taps * f, -f, f),
        ),
        Order(
            (taps, 2 * f, 2 * f, 0, 0, *of_out),
            Layout(parts.out, taps * 2 * f, 1, 2 * f, f),
            Layout(parts.out_adjoint + turned * 2 * f, 1, taps * 2 * f, -2 * f, f),
        ),
    ]
    return orders + [
        Order(
            (planes, 2 * f, f, s0, s1, *strides),
            Layout(parts.hidden + taps * 2 * f, row, 1, 2 * f, f),
            Layout(parts.nin_adjoint, 1, f, 2 * f * f, f),
        )
        for strides in of_nin
    ]


def pack(given: Operands, *, adjoint: bool) -> Tensor:
    """The weights of a gated resnet, as `Packed` orders them, in one tensor of x's dtype.

    Weights are dense. Without `adjoint` those parts are left out.
    """
    x, weights, gains = given.x, given.weights, given.gains
    channels = [skip.shape[1] for skip in given.skips]
    size = packed_size(weights, channels, adjoint)
    packed = torch.empty((size,), dtype=x.dtype, device=x.device)
    orders = orders_of(weights, channels)
    sources, forwards, adjoints = zip(*(*orders, *orders[:1] * (3 - len(orders))), strict=True)
    planned = plan(
        (sum(cdiv(weight.shape[0], BLOCK_D) for weight in weights),), sources=sources,
        forwards=tuple(map(tuple, forwards)), adjoints=tuple(map(tuple, adjoints)),
        NORMED=bool(gains), ADJOINT=adjoint, BLOCK_K=BLOCK_K, BLOCK_D=BLOCK_D, num_warps=4,
    )  # fmt: skip
    launch(
        pack_kernel, planned, x.device,
        v=pad_to_three(weights), gain=pad_to_three(gains or weights), packed_ptr=packed,
    )  # fmt: skip
    return packed
