"""Weights into the order that the matmuls read; `weight_gradients.py` is the way back.

A packed weight has a row per column of the matmul, its K numbers adjacent: (D, T C) for a
convolution, by tap and then channel, and for the adjoint (C, T D) with the taps turned around.
Columns that an epilogue takes in pairs lie side by side: A_i and G_i of a gate, the gradients of
elu(x_i) and elu(-x_i). Weight norm, w = g v / |v| per filter, is folded on the way. What one gated
resnet needs goes in one launch.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from .geometry import Taps, cdiv, packed_sizes
from .launch import launch, plan

BLOCK_D = 8
BLOCK_K = 256


@triton.jit
def paired(n, COUNT: tl.constexpr, PAIRS: tl.constexpr):
    """The place of column n where the halves of COUNT columns lie in turn."""
    if PAIRS:
        n = n % (COUNT // 2) * 2 + n // (COUNT // 2)
    return n


@triton.jit
def source_of(
    k, stride_c, stride_t, T: tl.constexpr, C: tl.constexpr, S0: tl.constexpr, S1: tl.constexpr
):
    """Offsets in a filter of numbers k = (tap, channel) of its packed row, and which exist.

    With S0 > 0 the weight is that of the skips, of S0 and S1 channels: a "tap" is a plane of C / 2
    channels of a skip, elu of them and of their negatives.
    """
    tap = k // C
    channel = k % C
    exists = k < T * C
    if S0 > 0:
        F: tl.constexpr = C // 2
        planes_0: tl.constexpr = (S0 + F - 1) // F
        second = tap >= planes_0
        f = (tl.where(second, tap - planes_0, tap) * F) + channel % F
        exists &= f < tl.where(second, S1, S0)
        channel = channel // F * (S0 + S1) + tl.where(second, S0, 0) + f
        tap = tap * 0
    return channel.to(tl.int64) * stride_c + tap * stride_t, exists


@triton.jit
def pack_filters(
    v_ptr, gain_ptr, forward_ptr, adjoint_ptr, block, stride_d, stride_c, stride_t,
    T: tl.constexpr, C: tl.constexpr, D: tl.constexpr, S0: tl.constexpr, S1: tl.constexpr,
    ROW: tl.constexpr, PAIRS_C: tl.constexpr, PAIRS_D: tl.constexpr, TURNED: tl.constexpr,
    NORMED: tl.constexpr, ADJOINT: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """BLOCK_D filters g v / |v|, or v itself without NORMED, to rows of ROW numbers, and (ADJOINT)
    to columns of the adjoint's rows: (C, T D) with taps TURNED around, else (T, C, D)."""
    d = block.to(tl.int64) * BLOCK_D + tl.arange(0, BLOCK_D)
    mask_d = d < D
    factor = tl.full((BLOCK_D,), 1.0, dtype=v_ptr.dtype.element_ty)
    if NORMED:
        square = tl.zeros((BLOCK_D,), dtype=v_ptr.dtype.element_ty)
        for first in range(0, T * C, BLOCK_K):
            k = first + tl.arange(0, BLOCK_K)
            source, exists = source_of(k, stride_c, stride_t, T=T, C=C, S0=S0, S1=S1)
            mask = mask_d[:, None] & exists[None, :]
            v = tl.load(v_ptr + d[:, None] * stride_d + source[None, :], mask=mask, other=0.0)
            square += tl.sum(v * v, axis=1)
        gain = tl.load(gain_ptr + d, mask=mask_d, other=0.0)
        factor = gain / tl.where(mask_d, tl.sqrt(square), 1.0)
    for first in range(0, T * C, BLOCK_K):
        k = first + tl.arange(0, BLOCK_K)
        source, exists = source_of(k, stride_c, stride_t, T=T, C=C, S0=S0, S1=S1)
        mask = mask_d[:, None] & exists[None, :]
        v = tl.load(v_ptr + d[:, None] * stride_d + source[None, :], mask=mask, other=0.0)
        w = (v * factor[:, None]).to(forward_ptr.dtype.element_ty)
        mask = mask_d[:, None] & (k < T * C)[None, :]
        row = paired(d, D, PAIRS_D)[:, None] * ROW
        tl.store(forward_ptr + row + k[None, :], w, mask=mask)
        if ADJOINT:
            tap = k // C
            column = paired(k % C, C, PAIRS_C)
            place = (column * T + (T - 1 - tap)) * D if TURNED else (tap * C + column) * D
            tl.store(adjoint_ptr + place[None, :] + d[:, None], w, mask=mask)


@triton.jit
def pack_kernel(
    v, gain, in_strides, out_strides, nin_strides, packed_ptr,
    F: tl.constexpr, S0: tl.constexpr, S1: tl.constexpr, PLANES: tl.constexpr, T: tl.constexpr,
    NORMED: tl.constexpr, ADJOINT: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """All weights of a gated resnet, as `Packed` has them.

    v, gain: those of conv_in, conv_out and nin_skip.
    """
    ROW: tl.constexpr = (T + PLANES) * 2 * F
    OUT: tl.constexpr = F * ROW
    OUT_ADJOINT: tl.constexpr = OUT + 4 * F * F * T
    IN_ADJOINT: tl.constexpr = OUT_ADJOINT + 4 * F * F * T
    NIN_ADJOINT: tl.constexpr = IN_ADJOINT + 2 * F * F * T
    blocks_in: tl.constexpr = (F + BLOCK_D - 1) // BLOCK_D
    blocks_out: tl.constexpr = (2 * F + BLOCK_D - 1) // BLOCK_D
    pid = tl.program_id(0)
    if pid < blocks_out:
        pack_filters(
            v[1], gain[1], packed_ptr + OUT, packed_ptr + OUT_ADJOINT, pid,
            out_strides[0], out_strides[1], out_strides[2], T=T, C=2 * F, D=2 * F, S0=0, S1=0,
            ROW=2 * F * T, PAIRS_C=True, PAIRS_D=True, TURNED=True,
            NORMED=NORMED, ADJOINT=ADJOINT, BLOCK_K=BLOCK_K, BLOCK_D=BLOCK_D,
        )  # fmt: skip
    elif pid < blocks_out + blocks_in:
        pack_filters(
            v[0], gain[0], packed_ptr, packed_ptr + IN_ADJOINT, pid - blocks_out,
            in_strides[0], in_strides[1], in_strides[2], T=T, C=2 * F, D=F, S0=0, S1=0,
            ROW=ROW, PAIRS_C=True, PAIRS_D=False, TURNED=True,
            NORMED=NORMED, ADJOINT=ADJOINT, BLOCK_K=BLOCK_K, BLOCK_D=BLOCK_D,
        )  # fmt: skip
    elif PLANES > 0:
        pack_filters(
            v[2], gain[2], packed_ptr + 2 * F * T, packed_ptr + NIN_ADJOINT,
            pid - blocks_out - blocks_in, nin_strides[0], nin_strides[1], nin_strides[2],
            T=PLANES, C=2 * F, D=F, S0=S0, S1=S1,
            ROW=ROW, PAIRS_C=True, PAIRS_D=False, TURNED=False,
            NORMED=NORMED, ADJOINT=ADJOINT, BLOCK_K=BLOCK_K, BLOCK_D=BLOCK_D,
        )  # fmt: skip


@triton.jit
def pack_one_kernel(
    v_ptr, strides, packed_ptr, T: tl.constexpr, C: tl.constexpr, D: tl.constexpr,
    BLOCK_K: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """A weight without norm: (D, T C) and then (T C, D)."""
    pack_filters(
        v_ptr, v_ptr, packed_ptr, packed_ptr + D * T * C, tl.program_id(0),
        strides[0], strides[1], strides[2], T=T, C=C, D=D, S0=0, S1=0,
        ROW=T * C, PAIRS_C=False, PAIRS_D=False, TURNED=False,
        NORMED=False, ADJOINT=True, BLOCK_K=BLOCK_K, BLOCK_D=BLOCK_D,
    )  # fmt: skip


class Packed(NamedTuple):
    """The packed weights of a gated resnet, parts of one tensor.

    hidden: (F, (T + planes) 2F), conv_in and then the skips' weight. out: (2F, T 2F). For the
    adjoints out_adjoint (2F, T 2F), in_adjoint (2F, T F) and, for each plane, nin_adjoint (2F, F).
    """

    hidden: Tensor
    out: Tensor
    out_adjoint: Tensor
    in_adjoint: Tensor
    nin_adjoint: Tensor


def parts_of(packed: Tensor, filters: int, taps: Taps, planes: int) -> Packed:
    """The parts of what `pack` gave with `adjoint`."""
    return Packed(*packed.split(packed_sizes(filters, taps, planes, True)))


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


def three(tensors: list[Tensor]) -> tuple[Tensor, ...]:
    """Something in the third place, which a block without skips does not read."""
    return (*tensors, tensors[0])[:3]


def block_constants(
    weights: list[Tensor], skip_channels: list[int], planes: int, normed: bool
) -> dict[str, Any]:
    filters, _, kh, kw = weights[0].shape
    s0, s1 = (*skip_channels, 0, 0)[:2]
    return {
        "F": filters, "S0": s0, "S1": s1, "PLANES": planes, "T": kh * kw,
        "NORMED": normed, "BLOCK_K": BLOCK_K, "BLOCK_D": BLOCK_D,
        **dict(zip(
            ("in_strides", "out_strides", "nin_strides"),
            map(strides_of, three(weights)), strict=True,
        )),
    }  # fmt: skip


def block_grid(weights: list[Tensor]) -> tuple[int]:
    return (sum(cdiv(weight.shape[0], BLOCK_D) for weight in weights),)


def pack(
    weights: list[Tensor],
    gains: list[Tensor],
    skip_channels: list[int],
    planes: int,
    dtype: torch.dtype,
    *,
    adjoint: bool,
) -> Tensor:
    """The weights of a gated resnet, as `Packed` orders them, in one tensor of `dtype`.

    weights: conv_in, conv_out and, with skips, nin_skip, (D, C, kh, kw) each; gains: one (D,) for
    each of them, or none. They are float32, or float64 for a float64 result.
    """
    weights = [dense(weight) for weight in weights]
    filters, _, kh, kw = weights[0].shape
    sizes = packed_sizes(filters, Taps(kh, kw, 0, 0), planes, adjoint)
    packed = torch.empty((sum(sizes),), dtype=dtype, device=weights[0].device)
    planned = plan(
        block_grid(weights), ADJOINT=adjoint, num_warps=4,
        **block_constants(weights, skip_channels, planes, bool(gains)),
    )  # fmt: skip
    tensors = {"v": three(weights), "gain": three(gains or weights)}
    launch(pack_kernel, planned, packed.device, **tensors, packed_ptr=packed)
    return packed


def pack_one(weight: Tensor, dtype: torch.dtype) -> Tensor:
    """A weight (D, C, kh, kw) without norm, for a convolution and its adjoint, as `parts_of_one`
    has it: (2, numel)."""
    weight = dense(weight)
    filters, channels, kh, kw = weight.shape
    packed = torch.empty((2, weight.numel()), dtype=dtype, device=weight.device)
    planned = plan(
        (cdiv(filters, BLOCK_D),), strides=strides_of(weight),
        T=kh * kw, C=channels, D=filters, BLOCK_K=BLOCK_K, BLOCK_D=BLOCK_D, num_warps=4,
    )  # fmt: skip
    launch(pack_one_kernel, planned, weight.device, v_ptr=weight, packed_ptr=packed)
    return packed


def parts_of_one(packed: Tensor, filters: int) -> tuple[Tensor, Tensor]:
    """(D, kh kw C), and for the adjoint (kh kw C, D), of what `pack_one` gave."""
    return packed[0].view(filters, -1), packed[1].view(-1, filters)
