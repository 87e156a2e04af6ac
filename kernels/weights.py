"""Weights into the order that the matmuls read, and their gradients back out of it.

A packed weight has a row per column of the matmul, its K numbers adjacent: (D, T C) for a
convolution, by tap and then channel, and for the adjoint (C, T D) with the taps turned around.
Columns that an epilogue takes in pairs lie side by side: A_i and G_i of a gate, the gradients of
elu(x_i) and elu(-x_i). Weight norm, w = g v / |v| per filter, is folded on the way in and
differentiated on the way out.

What one gated resnet needs goes in one launch, and comes out in one.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from .geometry import Taps, packed_sizes
from .launch import accumulator_of, launch

BLOCK_D = 8
BLOCK_K = 256
BLOCK_S = 4  # parts of a gradient that are added at once


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


@triton.jit
def sum_parts(
    part_ptr, splits, k, d, mask, part_stride, D: tl.constexpr, ACC: tl.constexpr,
    BLOCK_S: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """(BLOCK_K, BLOCK_D): the sum over splits of parts (splits, K, D)."""
    total = tl.zeros((BLOCK_K, BLOCK_D), dtype=ACC)
    place = k[:, None].to(tl.int64) * D + d[None, :]
    for first in range(0, splits, BLOCK_S):
        s = first + tl.arange(0, BLOCK_S)
        parts = tl.load(
            part_ptr + s.to(tl.int64)[:, None, None] * part_stride + place[None, :, :],
            mask=(s < splits)[:, None, None] & mask[None, :, :],
            other=0.0,
        )
        total += tl.sum(parts, axis=0)
    return total


@triton.jit
def unpack_filters(
    part_ptr, splits, part_stride, sums_ptr, n_sums, v_ptr, gain_ptr,
    grad_v_ptr, grad_gain_ptr, grad_bias_ptr, block, stride_d, stride_c, stride_t,
    T: tl.constexpr, C: tl.constexpr, D: tl.constexpr, S0: tl.constexpr, S1: tl.constexpr,
    NORMED: tl.constexpr, BIAS: tl.constexpr, ACC: tl.constexpr,
    BLOCK_S: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """From dw = the sum of `parts` (splits, T C, D): dg = <dw, v> / |v| and dv = g / |v|
    (dw - v <dw, v> / |v|^2) per filter, or dv = dw without NORMED; with BIAS the sum of `sums`
    (n_sums, D) too. v and dv share their strides."""
    d = block * BLOCK_D + tl.arange(0, BLOCK_D)
    mask_d = d < D
    filter_ = d.to(tl.int64)[None, :] * stride_d
    if BIAS:
        k = tl.arange(0, BLOCK_K)
        bias = tl.zeros((BLOCK_D,), dtype=ACC)
        for first in range(0, n_sums, BLOCK_K):
            n = (first + k)[:, None].to(tl.int64)
            mask = (n < n_sums) & mask_d[None, :]
            bias += tl.sum(tl.load(sums_ptr + n * D + d[None, :], mask=mask, other=0.0), axis=0)
        tl.store(grad_bias_ptr + d, bias, mask=mask_d)
    if NORMED:
        square = tl.zeros((BLOCK_D,), dtype=ACC)
        product = tl.zeros((BLOCK_D,), dtype=ACC)
        for first in range(0, T * C, BLOCK_K):
            k = first + tl.arange(0, BLOCK_K)
            source, exists = source_of(k, stride_c, stride_t, T=T, C=C, S0=S0, S1=S1)
            mask = exists[:, None] & mask_d[None, :]
            v = tl.load(v_ptr + filter_ + source[:, None], mask=mask, other=0.0)
            dw = sum_parts(
                part_ptr, splits, k, d, mask, part_stride, D=D, ACC=ACC,
                BLOCK_S=BLOCK_S, BLOCK_K=BLOCK_K, BLOCK_D=BLOCK_D,
            )  # fmt: skip
            square += tl.sum(v * v, axis=0)
            product += tl.sum(dw * v, axis=0)
        square = tl.where(mask_d, square, 1.0)
        norm = tl.sqrt(square)
        gain = tl.load(gain_ptr + d, mask=mask_d, other=0.0)
        tl.store(grad_gain_ptr + d, product / norm, mask=mask_d)
    for first in range(0, T * C, BLOCK_K):
        k = first + tl.arange(0, BLOCK_K)
        source, exists = source_of(k, stride_c, stride_t, T=T, C=C, S0=S0, S1=S1)
        mask = exists[:, None] & mask_d[None, :]
        dw = sum_parts(
            part_ptr, splits, k, d, mask, part_stride, D=D, ACC=ACC,
            BLOCK_S=BLOCK_S, BLOCK_K=BLOCK_K, BLOCK_D=BLOCK_D,
        )  # fmt: skip
        if NORMED:
            v = tl.load(v_ptr + filter_ + source[:, None], mask=mask, other=0.0)
            dw = (gain / norm)[None, :] * (dw - v * (product / square)[None, :])
        tl.store(grad_v_ptr + filter_ + source[:, None], dw, mask=mask)


@triton.jit
def unpack_one_kernel(
    part_ptr, splits, grad_v_ptr, strides, T: tl.constexpr, C: tl.constexpr, D: tl.constexpr,
    ACC: tl.constexpr, BLOCK_S: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """The gradient of a weight without norm."""
    unpack_filters(
        part_ptr, splits, T * C * D, part_ptr, 0, part_ptr, part_ptr,
        grad_v_ptr, part_ptr, part_ptr, tl.program_id(0), strides[0], strides[1], strides[2],
        T=T, C=C, D=D, S0=0, S1=0, NORMED=False, BIAS=False, ACC=ACC,
        BLOCK_S=BLOCK_S, BLOCK_K=BLOCK_K, BLOCK_D=BLOCK_D,
    )  # fmt: skip


@triton.jit
def unpack_kernel(
    hidden_ptr, hidden_splits, out_ptr, out_splits, hidden_sums_ptr, out_sums_ptr,
    n_hidden_sums, n_out_sums,
    v, gain, grad_v, grad_gain, grad_bias, in_strides, out_strides, nin_strides,
    F: tl.constexpr, S0: tl.constexpr, S1: tl.constexpr, PLANES: tl.constexpr, T: tl.constexpr,
    NORMED: tl.constexpr, ACC: tl.constexpr,
    BLOCK_S: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """The gradients of all parameters of a gated resnet. Tuples: of conv_in, conv_out, nin_skip;
    grad_bias of the first two.

    hidden (splits, (T + PLANES) 2F, F) has conv_in's and the skips' parts, out (splits, T 2F, 2F).
    """
    HIDDEN: tl.constexpr = (T + PLANES) * 2 * F * F
    blocks_in: tl.constexpr = (F + BLOCK_D - 1) // BLOCK_D
    blocks_out: tl.constexpr = (2 * F + BLOCK_D - 1) // BLOCK_D
    pid = tl.program_id(0)
    if pid < blocks_out:
        unpack_filters(
            out_ptr, out_splits, 4 * F * F * T, out_sums_ptr, n_out_sums,
            v[1], gain[1], grad_v[1], grad_gain[1], grad_bias[1], pid,
            out_strides[0], out_strides[1], out_strides[2], T=T, C=2 * F, D=2 * F, S0=0, S1=0,
            NORMED=NORMED, BIAS=True, ACC=ACC,
            BLOCK_S=BLOCK_S, BLOCK_K=BLOCK_K, BLOCK_D=BLOCK_D,
        )  # fmt: skip
    elif pid < blocks_out + blocks_in:
        unpack_filters(
            hidden_ptr, hidden_splits, HIDDEN, hidden_sums_ptr, n_hidden_sums,
            v[0], gain[0], grad_v[0], grad_gain[0], grad_bias[0], pid - blocks_out,
            in_strides[0], in_strides[1], in_strides[2], T=T, C=2 * F, D=F, S0=0, S1=0,
            NORMED=NORMED, BIAS=True, ACC=ACC,
            BLOCK_S=BLOCK_S, BLOCK_K=BLOCK_K, BLOCK_D=BLOCK_D,
        )  # fmt: skip
    elif PLANES > 0:
        unpack_filters(
            hidden_ptr + 2 * F * F * T, hidden_splits, HIDDEN, hidden_sums_ptr, n_hidden_sums,
            v[2], gain[2], grad_v[2], grad_gain[2], grad_bias[0], pid - blocks_out - blocks_in,
            nin_strides[0], nin_strides[1], nin_strides[2], T=PLANES, C=2 * F, D=F, S0=S0, S1=S1,
            NORMED=NORMED, BIAS=False, ACC=ACC,
            BLOCK_S=BLOCK_S, BLOCK_K=BLOCK_K, BLOCK_D=BLOCK_D,
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


def _dense(v: Tensor) -> Tensor:
    """v with one stride for all taps: contiguous or channels_last as it is, else a copy."""
    if v.is_contiguous() or v.is_contiguous(memory_format=torch.channels_last):
        return v
    return v.contiguous()


def _strides(v: Tensor) -> tuple[int, int, int]:
    """Strides of filter, channel and tap of a dense weight."""
    _, channels, rows, cols = v.shape
    stride_c, stride_t = (rows * cols, 1) if v.is_contiguous() else (1, channels)
    return channels * rows * cols, stride_c, stride_t


def _empty_like(v: Tensor) -> Tensor:
    """Contiguous, or channels_last where v is that alone."""
    layout = torch.contiguous_format if v.is_contiguous() else torch.channels_last
    return torch.empty(v.shape, dtype=v.dtype, device=v.device, memory_format=layout)


def _three(tensors: list[Tensor]) -> tuple[Tensor, ...]:
    """Something in the third place, which a block without skips does not read."""
    return (*tensors, tensors[0])[:3]


def _block_constants(
    weights: list[Tensor], skip_channels: list[int], planes: int, normed: bool
) -> dict[str, Any]:
    filters, _, kh, kw = weights[0].shape
    s0, s1 = (*skip_channels, 0, 0)[:2]
    return {
        "F": filters, "S0": s0, "S1": s1, "PLANES": planes, "T": kh * kw,
        "NORMED": normed, "BLOCK_K": BLOCK_K, "BLOCK_D": BLOCK_D,
        **dict(zip(
            ("in_strides", "out_strides", "nin_strides"),
            map(_strides, _three(weights)), strict=True,
        )),
    }  # fmt: skip


def _block_grid(weights: list[Tensor]) -> tuple[int]:
    return (sum(triton.cdiv(weight.shape[0], BLOCK_D) for weight in weights),)


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
    weights = [_dense(weight) for weight in weights]
    filters, _, kh, kw = weights[0].shape
    sizes = packed_sizes(filters, Taps(kh, kw, 0, 0), planes, adjoint)
    packed = torch.empty((sum(sizes),), dtype=dtype, device=weights[0].device)
    launch(
        pack_kernel, _block_grid(weights), packed.device,
        v=_three(weights), gain=_three(gains or weights), packed_ptr=packed, ADJOINT=adjoint,
        **_block_constants(weights, skip_channels, planes, bool(gains)), num_warps=4,
    )  # fmt: skip
    return packed


def unpack(
    hidden: Tensor,
    out: Tensor,
    hidden_sums: Tensor,
    out_sums: Tensor,
    weights: list[Tensor],
    gains: list[Tensor],
    skip_channels: list[int],
    planes: int,
) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    """Gradients of weights, biases and gains (none without gains), each as in `pack`.

    Of the biases there are two: nin_skip's is added to h as conv_in's is, and has its gradient.

    hidden, out: parts of the gradients of packed weights (`matmul.weight_gradient`); hidden_sums
    (blocks, F) and out_sums (blocks, 2F): parts of those of the biases.
    """
    weights = [_dense(weight) for weight in weights]
    grads = [_empty_like(weight) for weight in weights]
    biases = [weight.new_empty(weight.shape[:1]) for weight in weights[:2]]
    grad_gains = [gain.new_empty(gain.shape) for gain in gains]
    launch(
        unpack_kernel, _block_grid(weights), hidden.device,
        hidden_ptr=hidden, hidden_splits=hidden.shape[0], out_ptr=out, out_splits=out.shape[0],
        hidden_sums_ptr=hidden_sums, out_sums_ptr=out_sums,
        n_hidden_sums=hidden_sums.shape[0], n_out_sums=out_sums.shape[0],
        v=_three(weights), gain=_three(gains or weights),
        grad_v=_three(grads), grad_gain=_three(grad_gains or grads), grad_bias=tuple(biases),
        **_block_constants(weights, skip_channels, planes, bool(gains)),
        ACC=accumulator_of(hidden.dtype), BLOCK_S=BLOCK_S, num_warps=8,
    )  # fmt: skip
    return grads, biases, grad_gains


def pack_one(weight: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """A weight (D, C, kh, kw) without norm as (D, kh kw C), and for the adjoint (kh kw C, D)."""
    weight = _dense(weight)
    filters, channels, kh, kw = weight.shape
    packed = torch.empty((2, weight.numel()), dtype=dtype, device=weight.device)
    launch(
        pack_one_kernel, (triton.cdiv(filters, BLOCK_D),), weight.device,
        v_ptr=weight, strides=_strides(weight), packed_ptr=packed,
        T=kh * kw, C=channels, D=filters, BLOCK_K=BLOCK_K, BLOCK_D=BLOCK_D, num_warps=4,
    )  # fmt: skip
    return packed[0].view(filters, -1), packed[1].view(-1, filters)


def unpack_one(parts: Tensor, weight: Tensor) -> Tensor:
    """The gradient of a weight without norm from the parts of `matmul.weight_gradient`."""
    grad = _empty_like(_dense(weight))
    filters, channels, kh, kw = weight.shape
    launch(
        unpack_one_kernel, (triton.cdiv(filters, BLOCK_D),), weight.device,
        part_ptr=parts, splits=parts.shape[0], grad_v_ptr=grad, strides=_strides(grad),
        T=kh * kw, C=channels, D=filters, ACC=accumulator_of(parts.dtype),
        BLOCK_S=BLOCK_S, BLOCK_K=BLOCK_K, BLOCK_D=BLOCK_D, num_warps=8,
    )  # fmt: skip
    return grad
