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
from .weight_kernels import pack_kernel

BLOCK_D = 8
BLOCK_K = 256


class Packed(NamedTuple):
    """Where the parts of the packed weights of a gated resnet begin, in one tensor.

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


class Place(NamedTuple):
    """Where number (d, c, t) of a weight goes: offset + d' of_d + c' of_c + t of_t.

    d and c count filters and channels. Of one of them the parts of `half` lie in turn: of the
    filters for a convolution, of the channels for its adjoint.
    """

    offset: int
    of_d: int
    of_c: int
    of_t: int
    half: int


class Order(NamedTuple):
    """How a weight is read, and where it goes, for the convolution and for its adjoint.

    source: taps, channels, filters, channels of two skips (see `source_of`), and strides of filter,
    channel and tap.
    """

    source: tuple[int, ...]
    forward: Place
    adjoint: Place


def dense(v: Tensor) -> Tensor:
    """v with one stride for all taps: contiguous or channels_last as it is, else a copy."""
    last = v.is_contiguous(memory_format=torch.channels_last)
    return v if last or v.is_contiguous() else v.contiguous()


def strides_of(v: Tensor) -> tuple[int, int, int]:
    """Strides of filter, channel and tap of a dense weight."""
    _, channels, rows, cols = v.shape
    stride_c, stride_t = (rows * cols, 1) if v.is_contiguous() else (1, channels)
    return channels * rows * cols, stride_c, stride_t


def three(tensors: list[Tensor]) -> tuple[Tensor, ...]:
    """Three tensors; those that are not there, of which no program reads, are the first."""
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
            Place(parts.hidden, row, 1, 2 * f, f),
            Place(parts.in_adjoint + turned * f, 1, taps * f, -f, f),
        ),
        Order(
            (taps, 2 * f, 2 * f, 0, 0, *of_out),
            Place(parts.out, taps * 2 * f, 1, 2 * f, f),
            Place(parts.out_adjoint + turned * 2 * f, 1, taps * 2 * f, -2 * f, f),
        ),
    ]
    return orders + [
        Order(
            (planes, 2 * f, f, s0, s1, *strides),
            Place(parts.hidden + taps * 2 * f, row, 1, 2 * f, f),
            Place(parts.nin_adjoint, 1, f, 2 * f * f, f),
        )
        for strides in of_nin
    ]


def pack(
    weights: list[Tensor],
    gains: list[Tensor],
    skip_channels: list[int],
    dtype: torch.dtype,
    *,
    adjoint: bool,
) -> Tensor:
    """The weights of a gated resnet, as `Packed` orders them, in one tensor of `dtype`.

    weights: conv_in, conv_out and, with skips, nin_skip, (D, C, kh, kw) each; gains: one (D,) for
    each of them, or none. They are float32, or float64 for a float64 result.
    """
    weights = [dense(weight) for weight in weights]
    size = (packed_size(weights, skip_channels, adjoint),)
    packed = torch.empty(size, dtype=dtype, device=weights[0].device)
    orders = orders_of(weights, skip_channels)
    sources, forwards, adjoints = zip(*(*orders, *orders[:1] * (3 - len(orders))), strict=True)
    planned = plan(
        (sum(cdiv(weight.shape[0], BLOCK_D) for weight in weights),), sources=sources,
        forwards=tuple(map(tuple, forwards)), adjoints=tuple(map(tuple, adjoints)),
        NORMED=bool(gains), ADJOINT=adjoint, BLOCK_K=BLOCK_K, BLOCK_D=BLOCK_D, num_warps=4,
    )  # fmt: skip
    tensors = {"v": three(weights), "gain": three(gains or weights)}
    launch(pack_kernel, planned, packed.device, **tensors, packed_ptr=packed)
    return packed
