"""The kernels that pack weights (see `weights.py`): one launch for a gated resnet."""

from __future__ import annotations

import triton
import triton.language as tl


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
