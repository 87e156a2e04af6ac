"""The gradients of weights out of the order of the matmuls: `weights.py` the other way.

The parts that the splits of a weight gradient left are added, weight norm is differentiated, and
the biases' gradients are summed: for one gated resnet in one launch, which it shares with the
gradients of its inputs where they are wanted.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from .geometry import Operands, cdiv, empty_weight
from .weights import BLOCK_D, pad_to_three, source_of

BLOCK_S = 4  # parts of a gradient that are added at once


@triton.jit
def sum_parts(
    part_ptr, splits, place, mask, part_stride, ACC: tl.constexpr,
    BLOCK_S: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """(BLOCK_K, BLOCK_D): the sum over splits of the numbers at `place` of each."""
    total = tl.zeros((BLOCK_K, BLOCK_D), dtype=ACC)
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
    NORMED: tl.constexpr, ACC: tl.constexpr,
    BLOCK_S: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """From dw = the sum of parts (T C, D): dg = <dw, v> / |v| and dv = g / |v|
    (dw - v <dw, v> / |v|^2) per filter, or dv = dw without NORMED; and the bias's, the sum of
    `sums` (n_sums, D). v and dv share their strides."""
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
    if NORMED:
        square = tl.zeros((BLOCK_D,), dtype=ACC)
        product = tl.zeros((BLOCK_D,), dtype=ACC)
        for first in range(0, T * C, BLOCK_K):
            k = first + tl.arange(0, BLOCK_K)
            source, exists = source_of(k, stride_c, stride_t, T, C, S0, S1)
            mask = exists[:, None] & mask_d[None, :]
            v = tl.load(v_ptr + filter_ + source[:, None], mask=mask, other=0.0)
            dw = sum_parts(
                part_ptr, splits, k[:, None].to(tl.int64) * D + d[None, :], mask, part_stride,
                ACC=ACC, BLOCK_S=BLOCK_S, BLOCK_K=BLOCK_K, BLOCK_D=BLOCK_D,
            )  # fmt: skip
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
            part_ptr, splits, k[:, None].to(tl.int64) * D + d[None, :], mask, part_stride,
            ACC=ACC, BLOCK_S=BLOCK_S, BLOCK_K=BLOCK_K, BLOCK_D=BLOCK_D,
        )  # fmt: skip
        if NORMED:
            v = tl.load(v_ptr + filter_ + source[:, None], mask=mask, other=0.0)
            dw = (gain / norm)[None, :] * (dw - v * (product / square)[None, :])
        tl.store(grad_v_ptr + filter_ + source[:, None], dw, mask=mask)


@triton.jit
def unpack_block(
    pid, parts, sums, v, gain, grad_v, grad_gain, grad_bias, counts, strides,
    F: tl.constexpr, S0: tl.constexpr, S1: tl.constexpr, PLANES: tl.constexpr, T: tl.constexpr,
    NORMED: tl.constexpr, ACC: tl.constexpr,
    BLOCK_S: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """A program of those that `unpack_programs` counts: gradients of a gated resnet's parameters.

    parts, sums: of h's convolutions and of the gates', whose numbers `counts` has: parts (splits,
    (T + PLANES) 2F, F) of conv_in and the skips', parts (splits, T 2F, 2F); sums of biases'
    gradients. The other tuples are of conv_in, conv_out and nin_skip.
    """
    HIDDEN: tl.constexpr = (T + PLANES) * 2 * F * F
    blocks_in: tl.constexpr = (F + BLOCK_D - 1) // BLOCK_D
    blocks_out: tl.constexpr = (2 * F + BLOCK_D - 1) // BLOCK_D
    if pid < blocks_out:
        unpack_filters(
            parts[1], counts[1], 4 * F * F * T, sums[1], counts[3],
            v[1], gain[1], grad_v[1], grad_gain[1], grad_bias[1], pid,
            strides[1][0], strides[1][1], strides[1][2], T=T, C=2 * F, D=2 * F, S0=0, S1=0,
            NORMED=NORMED, ACC=ACC,
            BLOCK_S=BLOCK_S, BLOCK_K=BLOCK_K, BLOCK_D=BLOCK_D,
        )  # fmt: skip
    elif pid < blocks_out + blocks_in:
        unpack_filters(
            parts[0], counts[0], HIDDEN, sums[0], counts[2],
            v[0], gain[0], grad_v[0], grad_gain[0], grad_bias[0], pid - blocks_out,
            strides[0][0], strides[0][1], strides[0][2], T=T, C=2 * F, D=F, S0=0, S1=0,
            NORMED=NORMED, ACC=ACC,
            BLOCK_S=BLOCK_S, BLOCK_K=BLOCK_K, BLOCK_D=BLOCK_D,
        )  # fmt: skip
    elif PLANES > 0:
        unpack_filters(
            parts[0] + 2 * F * F * T, counts[0], HIDDEN, sums[0], counts[2],
            v[2], gain[2], grad_v[2], grad_gain[2], grad_bias[2], pid - blocks_out - blocks_in,
            strides[2][0], strides[2][1], strides[2][2], T=PLANES, C=2 * F, D=F, S0=S0, S1=S1,
            NORMED=NORMED, ACC=ACC,
            BLOCK_S=BLOCK_S, BLOCK_K=BLOCK_K, BLOCK_D=BLOCK_D,
        )  # fmt: skip


@triton.jit
def unpack_kernel(
    parts, sums, v, gain, grad_v, grad_gain, grad_bias, counts, strides,
    F: tl.constexpr, S0: tl.constexpr, S1: tl.constexpr, PLANES: tl.constexpr, T: tl.constexpr,
    NORMED: tl.constexpr, ACC: tl.constexpr,
    BLOCK_S: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """`unpack_block`."""
    unpack_block(
        tl.program_id(0), parts, sums, v, gain, grad_v, grad_gain, grad_bias, counts, strides,
        F=F, S0=S0, S1=S1, PLANES=PLANES, T=T, NORMED=NORMED, ACC=ACC,
        BLOCK_S=BLOCK_S, BLOCK_K=BLOCK_K, BLOCK_D=BLOCK_D,
    )  # fmt: skip


def unpack_programs(filters: int, planes: int) -> int:
    """How many programs `unpack_block` takes."""
    of_f, of_2f = cdiv(filters, BLOCK_D), cdiv(2 * filters, BLOCK_D)
    return of_2f + of_f * (2 if planes else 1)


# The arguments of `unpack_block` that are tensors, where there is nothing to unpack.
NOTHING: dict[str, Any] = dict.fromkeys(
    ("parts", "sums", "v", "gain", "grad_v", "grad_gain", "grad_bias")
)
NAMES = (
    ("conv_in", "conv_out", "nin_skip"),
    ("bias_in", "bias_out", "bias_nin"),
    ("gain_in", "gain_out", "gain_nin"),
)


def unpacking(
    parts: tuple[Tensor, Tensor], sums: tuple[Tensor, Tensor], given: Operands
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Room for the gradients of the parameters, by name, and the tensors of `unpack_block`, which
    writes them.

    parts: of the gradients of packed weights, of h's convolutions and of the gates'; sums:
    (blocks, F) and (blocks, 2F), parts of the gradients of the biases. Weights are dense.
    nin_skip's bias is added to h as conv_in's is, and has the same gradient.
    """
    weights, gains = given.weights, given.gains
    grads = [empty_weight(weight) for weight in weights]
    like: Any = {"dtype": given.bias_in.dtype, "device": given.bias_in.device}
    biases, grad_gains = (
        [torch.empty(weight.shape[:1], **like) for weight in some]
        for some in (weights, weights[: len(gains)])
    )
    tensors = {
        "parts": parts,
        "sums": sums,
        "v": pad_to_three(weights),
        "gain": pad_to_three(gains or weights),
        "grad_v": pad_to_three(grads),
        "grad_gain": pad_to_three(grad_gains or grads),
        "grad_bias": pad_to_three(biases),
    }
    found = zip(NAMES, (grads, biases, grad_gains), strict=True)
    named = {n: grad for names, some in found for n, grad in zip(names, some, strict=False)}
    return named, tensors
