"""The gradients of weights out of the order of the matmuls: `weights.py` the other way.

The parts that the splits of a weight gradient left are added, weight norm is differentiated, and
the biases' gradients are summed: for one gated resnet in one launch.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .geometry import cdiv
from .launch import accumulator_of, launch, plan
from .weights import (
    BLOCK_D,
    BLOCK_K,
    block_constants,
    block_grid,
    dense,
    source_of,
    strides_of,
    three,
)

BLOCK_S = 4  # parts of a gradient that are added at once


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
    """The gradients of all parameters of a gated resnet. Tuples: of conv_in, conv_out, nin_skip.

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
            v[2], gain[2], grad_v[2], grad_gain[2], grad_bias[2], pid - blocks_out - blocks_in,
            nin_strides[0], nin_strides[1], nin_strides[2], T=PLANES, C=2 * F, D=F, S0=S0, S1=S1,
            NORMED=NORMED, BIAS=True, ACC=ACC,
            BLOCK_S=BLOCK_S, BLOCK_K=BLOCK_K, BLOCK_D=BLOCK_D,
        )  # fmt: skip


def _empty_like(v: Tensor) -> Tensor:
    """Contiguous, or channels_last where v is that alone."""
    layout = torch.contiguous_format if v.is_contiguous() else torch.channels_last
    return torch.empty(v.shape, dtype=v.dtype, device=v.device, memory_format=layout)


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

    nin_skip's bias is added to h as conv_in's is, and has the same gradient.

    hidden, out: parts of the gradients of packed weights (`matmul.weight_gradient`); hidden_sums
    (blocks, F) and out_sums (blocks, 2F): parts of those of the biases.
    """
    weights = [dense(weight) for weight in weights]
    grads = [_empty_like(weight) for weight in weights]
    biases = [weight.new_empty(weight.shape[:1]) for weight in weights]
    grad_gains = [gain.new_empty(gain.shape) for gain in gains]
    planned = plan(
        block_grid(weights), hidden_splits=hidden.shape[0], out_splits=out.shape[0],
        n_hidden_sums=hidden_sums.shape[0], n_out_sums=out_sums.shape[0],
        **block_constants(weights, skip_channels, planes, bool(gains)),
        ACC=accumulator_of(hidden.dtype), BLOCK_S=BLOCK_S, num_warps=8,
    )  # fmt: skip
    launch(
        unpack_kernel, planned, hidden.device, hidden_ptr=hidden, out_ptr=out,
        hidden_sums_ptr=hidden_sums, out_sums_ptr=out_sums,
        v=three(weights), gain=three(gains or weights),
        grad_v=three(grads), grad_gain=three(grad_gains or grads), grad_bias=three(biases),
    )  # fmt: skip
    return grads, biases, grad_gains


def unpack_one(parts: Tensor, weight: Tensor) -> Tensor:
    """The gradient of a weight without norm from the parts of `matmul.weight_gradient`."""
    grad = _empty_like(dense(weight))
    filters, channels, kh, kw = weight.shape
    planned = plan(
        (cdiv(filters, BLOCK_D),), splits=parts.shape[0], strides=strides_of(grad),
        T=kh * kw, C=channels, D=filters, ACC=accumulator_of(parts.dtype),
        BLOCK_S=BLOCK_S, BLOCK_K=BLOCK_K, BLOCK_D=BLOCK_D, num_warps=8,
    )  # fmt: skip
    launch(unpack_one_kernel, planned, weight.device, part_ptr=parts, grad_v_ptr=grad)
    return grad
