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
import triton
import triton.language as tl
from torch import Tensor

from .geometry import Operands, Taps, cdiv, packed_size, packed_sizes, planes_of
from .launch import launch, plan

BLOCK_D = 8
BLOCK_K = 256


@triton.jit
def source_of(k, stride_c, stride_t, T, C, S0, S1):
    """Offsets in a filter of numbers k = (tap, channel) of its packed row, and which exist.

    With S0 > 0 the weight is that of the skips, of S0 and S1 channels: a "tap" is a plane of C / 2
    channels of a skip, elu of them and of their negatives.
    """
    tap = k // C
    channel = k % C
    exists = k < T * C
    if S0 > 0:
        F = C // 2
        planes_0 = (S0 + F - 1) // F
        second = tap >= planes_0
        f = (tl.where(second, tap - planes_0, tap) * F) + channel % F
        exists &= f < tl.where(second, S1, S0)
        channel = channel // F * (S0 + S1) + tl.where(second, S0, 0) + f
        tap = tap * 0
    return channel.to(tl.int64) * stride_c + tap * stride_t, exists


@triton.jit
def place_in(place, d, c, t):
    """The place of number (d, c, t) of a packed weight, by a `Layout`."""
    return d.to(tl.int64) * place[1] + (c.to(tl.int64) * place[2] + t.to(tl.int64) * place[3])


@triton.jit
def in_turn(n, count, half):
    """The place of n among `count` whose parts of `half` lie in turn."""
    return n % half * (count // half) + n // half


@triton.jit
def pack_filters(
    v_ptr, gain_ptr, packed_ptr, block, source, forward, adjoint,
    NORMED: tl.constexpr, ADJOINT: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """BLOCK_D filters g v / |v|, or v itself without NORMED, to their places, one for the
    convolution and (ADJOINT) one for its adjoint.

    source, forward, adjoint: the parts of an `Order`.
    """
    T, C, D, S0, S1, stride_d, stride_c, stride_t = source
    d = block * BLOCK_D + tl.arange(0, BLOCK_D)
    mask_d = d < D
    v_ptrs = v_ptr + d.to(tl.int64)[:, None] * stride_d
    factor = tl.full((BLOCK_D,), 1.0, dtype=v_ptr.dtype.element_ty)
    if NORMED:
        square = tl.zeros((BLOCK_D,), dtype=v_ptr.dtype.element_ty)
        for first in range(0, T * C, BLOCK_K):
            k = first + tl.arange(0, BLOCK_K)
            offset, exists = source_of(k, stride_c, stride_t, T, C, S0, S1)
            mask = mask_d[:, None] & exists[None, :]
            v = tl.load(v_ptrs + offset[None, :], mask=mask, other=0.0)
            square += tl.sum(v * v, axis=1)
        gain = tl.load(gain_ptr + d, mask=mask_d, other=0.0)
        factor = gain / tl.where(mask_d, tl.sqrt(square), 1.0)
    for first in range(0, T * C, BLOCK_K):
        k = first + tl.arange(0, BLOCK_K)
        offset, exists = source_of(k, stride_c, stride_t, T, C, S0, S1)
        mask = mask_d[:, None] & exists[None, :]
        v = tl.load(v_ptrs + offset[None, :], mask=mask, other=0.0)
        w = (v * factor[:, None]).to(packed_ptr.dtype.element_ty)
        mask = mask_d[:, None] & (k < T * C)[None, :]
        tap = k // C
        channel = k % C
        row = in_turn(d, D, forward[4])
        place = place_in(forward, row[:, None], channel[None, :], tap[None, :])
        tl.store(packed_ptr + forward[0] + place, w, mask=mask)
        if ADJOINT:
            column = in_turn(channel, C, adjoint[4])
            place = place_in(adjoint, d[:, None], column[None, :], tap[None, :])
            tl.store(packed_ptr + adjoint[0] + place, w, mask=mask)


@triton.jit
def pack_kernel(
    v, gain, sources, forwards, adjoints, packed_ptr,
    NORMED: tl.constexpr, ADJOINT: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Up to three weights v with their gains; the first programs are the first one's."""
    pid = tl.program_id(0)
    blocks_0 = (sources[0][2] + BLOCK_D - 1) // BLOCK_D
    blocks_1 = blocks_0 + (sources[1][2] + BLOCK_D - 1) // BLOCK_D
    if pid < blocks_0:
        pack_filters(
            v[0], gain[0], packed_ptr, pid, sources[0], forwards[0], adjoints[0],
            NORMED=NORMED, ADJOINT=ADJOINT, BLOCK_K=BLOCK_K, BLOCK_D=BLOCK_D,
        )  # fmt: skip
    elif pid < blocks_1:
        pack_filters(
            v[1], gain[1], packed_ptr, pid - blocks_0, sources[1], forwards[1], adjoints[1],
            NORMED=NORMED, ADJOINT=ADJOINT, BLOCK_K=BLOCK_K, BLOCK_D=BLOCK_D,
        )  # fmt: skip
    else:
        pack_filters(
            v[2], gain[2], packed_ptr, pid - blocks_1, sources[2], forwards[2], adjoints[2],
            NORMED=NORMED, ADJOINT=ADJOINT, BLOCK_K=BLOCK_K, BLOCK_D=BLOCK_D,
        )  # fmt: skip


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
        NORMED=bool(gains), ADJOINT=adjoint, BLOCK_K=BLOCK_K, BLOCK_D=BLOCK_D, num_warps=8,
    )  # fmt: skip
    launch(
        pack_kernel, planned, x.device,
        v=pad_to_three(weights), gain=pad_to_three(gains or weights), packed_ptr=packed,
    )  # fmt: skip
    return packed
