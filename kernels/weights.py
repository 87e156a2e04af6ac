"""Packing of weights into the order that the matmuls read, and unpacking of their gradients.

A packed weight is (D, T C) for a convolution, ordered by tap, then channel, and (C, T D) for the
adjoint, with the taps flipped. Columns that an epilogue combines are adjacent: A_i and G_i of a
gate, the gradients of elu(x_i) and elu(-x_i). Packing also folds weight norm.

Programs of last_gradients_kernel add the partial sums of a weight gradient, differentiate weight
norm and sum the gradients of the biases.
"""

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl
from torch import Tensor

from .geometry import Tensors, cdiv
from .launch import launch

BLOCK_D = tl.constexpr(8)  # filters per program
BLOCK_K = tl.constexpr(256)
BLOCK_S = tl.constexpr(4)  # partial sums of a gradient that are added at once


@triton.jit
def source_of(k, stride_c, stride_t, T, C, S0, S1):
    """Offsets, within a filter, of the elements k = (tap, channel) of a packed row, and a mask.

    S0 > 0 means nin_skip, for skips of S0 and S1 channels: a "tap" is then a plane of C / 2
    channels of one skip.
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
def interleaved(n, COUNT: tl.constexpr, HALF: tl.constexpr):
    """New index of n when the two halves are interleaved: 0, HALF, 1, HALF + 1, ..."""
    return n % HALF * (COUNT // HALF) + n // HALF


@triton.jit
def pack_filters(
    v_ptr, gain_ptr, packed_ptr, adjoint_ptr, block, stride_d, stride_c, stride_t,
    T: tl.constexpr, C: tl.constexpr, D: tl.constexpr, S0: tl.constexpr, S1: tl.constexpr,
    ROW: tl.constexpr,
):  # fmt: skip
    """Write BLOCK_D filters, g v / |v| (v if gain_ptr is None), to rows of ROW numbers, and to the
    adjoint if not None."""
    d = block * BLOCK_D + tl.arange(0, BLOCK_D)
    mask_d = d < D
    row = interleaved(d, D, C // 2).to(tl.int64)
    v_ptrs = v_ptr + d.to(tl.int64)[:, None] * stride_d
    factor = tl.full((BLOCK_D,), 1.0, dtype=v_ptr.dtype.element_ty)
    if gain_ptr is not None:
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
        tl.store(packed_ptr + row[:, None] * ROW + k[None, :], w, mask=mask)
        if adjoint_ptr is not None:
            tap = k // C
            column = interleaved(k % C, C, C // 2).to(tl.int64)
            line = tap * C + column if S0 > 0 else column * T + (T - 1 - tap)
            tl.store(adjoint_ptr + line[None, :] * D + d[:, None], w, mask=mask)


@triton.jit
def pack_kernel(
    v, gain, strides, hidden_ptr, out_ptr, adjoint,
    CHANNELS: tl.constexpr, T: tl.constexpr, PLANES: tl.constexpr,
):  # fmt: skip
    """Pack the weights v of conv_in, conv_out and nin_skip with their gains and adjoints, or None.

    hidden: rows of conv_in, each followed by its row of nin_skip; out: rows of conv_out.
    """
    F: tl.constexpr = CHANNELS[0]
    pid = tl.program_id(0)
    for i in tl.static_range(3 if PLANES > 0 else 2):
        blocks = ((2 * F if i == 1 else F) + BLOCK_D - 1) // BLOCK_D
        if (pid >= 0) & (pid < blocks):
            pack_filters(
                v[i], None if gain is None else gain[i],
                out_ptr if i == 1 else hidden_ptr + (2 * F * T if i == 2 else 0),
                None if adjoint is None else adjoint[i], pid,
                strides[i][0], strides[i][1], strides[i][2],
                T=PLANES if i == 2 else T, C=2 * F, D=2 * F if i == 1 else F,
                S0=CHANNELS[1] if i == 2 else 0, S1=CHANNELS[2] if i == 2 else 0,
                ROW=(T if i == 1 else T + PLANES) * 2 * F,
            )  # fmt: skip
        pid -= blocks


def _three(x: Any) -> Any:
    return (*x, x[0])[:3]


def strides_of(v: Tensor) -> tuple[int, int, int]:
    """Strides of filter, channel and tap of a dense weight."""
    _, channels, rows, cols = v.shape
    stride_c, stride_t = (rows * cols, 1) if v.is_contiguous() else (1, channels)
    return channels * rows * cols, stride_c, stride_t


def pack(tensors: Tensors, hidden: Tensor, out: Tensor, *adjoint: Tensor) -> None:
    """Write a gated resnet's weights into the parts of `geometry.packed_sizes`."""
    weights = [weight.v for weight in tensors.weights]
    gains = [weight.gain for weight in tensors.weights]
    launch(
        pack_kernel, (programs_of(tensors),), hidden.device,
        v=_three(weights), gain=None if gains[0] is None else _three(gains),
        strides=tuple(map(strides_of, _three(weights))),
        hidden_ptr=hidden, out_ptr=out, adjoint=adjoint or None,
        CHANNELS=(*tensors.channels, 0, 0)[:3], T=weights[0].shape[2:].numel(),
        PLANES=tensors.planes,
        num_warps=8,
    )  # fmt: skip


def programs_of(tensors: Tensors) -> int:
    """Number of programs that each have BLOCK_D filters of one of the weights."""
    return sum(cdiv(weight.v.shape[0], BLOCK_D.value) for weight in tensors.weights)


@triton.jit
def sum_parts(part_ptr, splits, offset, mask, part_stride, ACC: tl.constexpr):
    """(BLOCK_K, BLOCK_D): the sum over splits of the elements at `offset`."""
    total = tl.zeros((BLOCK_K, BLOCK_D), dtype=ACC)
    for first in range(0, splits, BLOCK_S):
        s = first + tl.arange(0, BLOCK_S)
        parts = tl.load(
            part_ptr + s.to(tl.int64)[:, None, None] * part_stride + offset[None, :, :],
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
    ACC: tl.constexpr,
):  # fmt: skip
    """With dw = the sum of parts (T C, D), write dg = <dw, v> / |v| and dv = g / |v|
    (dw - v <dw, v> / |v|^2) per filter, or dv = dw without a gain; and the gradient of the bias,
    the sum of `sums` (n_sums, D). v and dv have the same strides."""
    d = block * BLOCK_D + tl.arange(0, BLOCK_D)
    mask_d = d < D
    filter_ = d.to(tl.int64)[None, :] * stride_d
    k = tl.arange(0, BLOCK_K)
    bias = tl.zeros((BLOCK_D,), dtype=ACC)
    for first in range(0, n_sums, BLOCK_K):
        n = (first + k)[:, None].to(tl.int64)
        mask = (n < n_sums) & mask_d[None, :]
        bias += tl.sum(tl.load(sums_ptr + n * D + d[None, :], mask=mask, other=0.0), axis=0)
    tl.store(grad_bias_ptr + d, bias, mask=mask_d)
    if gain_ptr is not None:
        square = tl.zeros((BLOCK_D,), dtype=ACC)
        product = tl.zeros((BLOCK_D,), dtype=ACC)
        for first in range(0, T * C, BLOCK_K):
            k = first + tl.arange(0, BLOCK_K)
            source, exists = source_of(k, stride_c, stride_t, T, C, S0, S1)
            mask = exists[:, None] & mask_d[None, :]
            v = tl.load(v_ptr + filter_ + source[:, None], mask=mask, other=0.0)
            dw = sum_parts(
                part_ptr, splits, k[:, None].to(tl.int64) * D + d[None, :], mask, part_stride, ACC
            )
            square += tl.sum(v * v, axis=0)
            product += tl.sum(dw * v, axis=0)
        square = tl.where(mask_d, square, 1.0)
        norm = tl.sqrt(square)
        gain = tl.load(gain_ptr + d, mask=mask_d, other=0.0)
        tl.store(grad_gain_ptr + d, product / norm, mask=mask_d)
    for first in range(0, T * C, BLOCK_K):
        k = first + tl.arange(0, BLOCK_K)
        source, exists = source_of(k, stride_c, stride_t, T, C, S0, S1)
        mask = exists[:, None] & mask_d[None, :]
        dw = sum_parts(
            part_ptr, splits, k[:, None].to(tl.int64) * D + d[None, :], mask, part_stride, ACC
        )
        if gain_ptr is not None:
            v = tl.load(v_ptr + filter_ + source[:, None], mask=mask, other=0.0)
            dw = (gain / norm)[None, :] * (dw - v * (product / square)[None, :])
        tl.store(grad_v_ptr + filter_ + source[:, None], dw, mask=mask)


@triton.jit
def unpack_block(
    pid, unpacked, CHANNELS: tl.constexpr, G: tl.constexpr,
):  # fmt: skip
    """One program of the parameters' gradients: filters of conv_in, conv_out or nin_skip.

    unpacked: see `unpacking`. The biases of conv_in and nin_skip have the same gradient.
    """
    parts, sums, counts, v, gain, grad_v, grad_gain, grad_bias, strides = unpacked
    F: tl.constexpr = CHANNELS[0]
    PLANES: tl.constexpr = (CHANNELS[1] + F - 1) // F + (CHANNELS[2] + F - 1) // F
    T: tl.constexpr = G.taps.kh * G.taps.kw
    HIDDEN: tl.constexpr = (T + PLANES) * 2 * F * F
    for i in tl.static_range(3 if PLANES > 0 else 2):
        blocks = ((2 * F if i == 1 else F) + BLOCK_D - 1) // BLOCK_D
        if (pid >= 0) & (pid < blocks):
            unpack_filters(
                parts[i % 2] + (2 * F * F * T if i == 2 else 0), counts[0],
                4 * F * F * T if i == 1 else HIDDEN, sums[i % 2], counts[1 + i % 2],
                v[i], None if gain is None else gain[i],
                grad_v[i], None if gain is None else grad_gain[i], grad_bias[i], pid,
                strides[i][0], strides[i][1], strides[i][2],
                T=PLANES if i == 2 else T, C=2 * F, D=2 * F if i == 1 else F,
                S0=CHANNELS[1] if i == 2 else 0, S1=CHANNELS[2] if i == 2 else 0,
                ACC=G.acc,
            )  # fmt: skip
        pid -= blocks


def unpacking(
    parts: tuple[Tensor, Tensor], sums: tuple[Tensor, Tensor], tensors: Tensors, grads: Tensors
) -> tuple[int, tuple[Any, ...]]:
    """The number of programs that write the gradients of parameters, and their argument: partial
    sums of weights and biases, their numbers, and for each weight the tensors of its filters.

    parts: (splits, (T + planes) 2F, F) for conv_in and nin_skip, (splits, T 2F, 2F) for conv_out;
    sums: of the biases' gradients, (blocks, F) and (blocks, 2F).
    """
    counts = parts[0].shape[0], sums[0].shape[0], sums[1].shape[0]
    weights = _three([weight.v for weight in tensors.weights])
    d_weights, d_biases, d_gains = map(_three, zip(*grads.weights, strict=True))
    gains = _three([weight.gain for weight in tensors.weights])
    if gains[0] is None:
        gains = d_gains = None
    strides = tuple(map(strides_of, weights))
    per_weight = weights, gains, d_weights, d_gains, d_biases, strides
    return programs_of(tensors), (parts, sums, counts, *per_weight)
