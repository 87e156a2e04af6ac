"""Weights into the order that the matmuls read; `weight_gradients.py` is the way back.

A packed weight has a row per column of the matmul, its K numbers adjacent: (D, T C) for a
convolution, by tap and then channel, and for the adjoint (C, T D) with the taps turned around.
Columns that an epilogue takes in pairs lie side by side: A_i and G_i of a gate, the gradients of
elu(x_i) and elu(-x_i). Weight norm, w = g v / |v| per filter, is folded on the way.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import TypeVar

import torch
import triton
import triton.language as tl
from torch import Tensor

from .geometry import Operands, cdiv, packed_sizes, planes_of
from .launch import launch, plan

Value = TypeVar("Value")
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
    """Offset + d of_d + c of_c + t of_t, from the first four numbers of `place`."""
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

    source: taps, channels, filters, channels of two skips (see `source_of`), and strides of filter,
    channel and tap. forward, adjoint: where number (d, c, t) goes (see `place_in`), and of how many
    filters, or channels for the adjoint, the halves that are interleaved are.
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


def pad_to_three(values: Sequence[Value]) -> tuple[Value, ...]:
    """Pad to three by repeating the first; the kernels ignore the padding."""
    return (*values, values[0], values[0])[:3]


def pack(given: Operands, *, adjoint: bool) -> Tensor:
    """The weights of a gated resnet in one tensor of x's dtype (see `geometry.packed_sizes`).

    Weights are dense. Without `adjoint` those parts are left out.
    """
    x, weights, gains = given.x, given.weights, given.gains
    f, _, kh, kw = given.conv_in.shape
    channels = [skip.shape[1] for skip in given.skips]
    taps, planes, skips = kh * kw, planes_of(channels, f), (*channels, 0, 0)[:2]
    row, turned = (taps + planes) * 2 * f, taps - 1
    sizes = packed_sizes(given.conv_in, channels, True)
    hidden, out, out_adjoint, in_adjoint, nin_adjoint = accumulate(sizes[:-1], initial=0)
    sources = (taps, 2 * f, f, 0, 0), (taps, 2 * f, 2 * f, 0, 0), (planes, 2 * f, f, *skips)
    forwards = (
        (hidden, row, 1, 2 * f, f),
        (out, taps * 2 * f, 1, 2 * f, f),
        (hidden + taps * 2 * f, row, 1, 2 * f, f),
    )
    adjoints = (
        (in_adjoint + turned * f, 1, taps * f, -f, f),
        (out_adjoint + turned * 2 * f, 1, taps * 2 * f, -2 * f, f),
        (nin_adjoint, 1, f, 2 * f * f, f),
    )
    orders = [(*source, *strides_of(v)) for source, v in zip(sources, weights, strict=False)]
    count = len(weights)
    planned = plan(
        (sum(cdiv(weight.shape[0], BLOCK_D) for weight in weights),),
        sources=pad_to_three(orders), forwards=pad_to_three(forwards[:count]),
        adjoints=pad_to_three(adjoints[:count]),
        NORMED=bool(gains), ADJOINT=adjoint, BLOCK_K=BLOCK_K, BLOCK_D=BLOCK_D, num_warps=8,
    )  # fmt: skip
    size = sum(sizes if adjoint else sizes[:2])
    packed = torch.empty((size,), dtype=x.dtype, device=x.device)
    launch(
        pack_kernel, planned, x.device,
        v=pad_to_three(weights), gain=pad_to_three(gains or weights), packed_ptr=packed,
    )  # fmt: skip
    return packed
