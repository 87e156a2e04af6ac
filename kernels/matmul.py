"""The matmuls behind every convolution, forward and backward.

A convolution is a matmul of rows by weights. Rows are those of `geometry.Rows`: pixels in order,
with zeros between the images and between their rows, so each tap is a constant distance away and
nothing is masked or divided in a loop. Both operands go from memory to shared memory as they are:
whatever must be computed of them (elu, dropout, folded weights) is computed before and stored. On
Hopper that is a matter of correctness too. A matrix instruction with an operand in registers runs
on while the program does, and some versions of Triton overwrite those registers too early.

The contracted index K is a list of runs, each of them adjacent in memory: KH rows of taps, each
KW x C numbers long (neighbouring pixels are neighbours in memory), then PLANES images of C channels
that are read at the pixel itself (a skip's 1x1 convolution).

A program has BLOCK_P rows by N1 + N2 columns, as two accumulators: blocks are powers of two, and
160 = 128 + 32 columns then cost what they are worth. N2 may be 0.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from .launch import (
    arithmetic,
    firsts_of,
    gradient_plan,
    launch,
    plan,
    uses_tf32,
    wide_dtype,
)
from .tilings import GradientPlan, launched_together

# Columns of the accumulator that N2 = 0 leaves unused; no instruction comes of it.
UNUSED = tl.constexpr(16)


@triton.jit
def place_of(
    first, batch, height, width,
    ABOVE: tl.constexpr, BEFORE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """The pixels at BLOCK rows from `first` on: a number to start from, how far from it each one is
    (in B, H, W order), and which rows are pixels.

    The launchers admit less than 2**31 rows, so positions are 32-bit: 64-bit division is slow, and
    64-bit offsets take twice the registers.
    """
    s = first.to(tl.int32) + tl.arange(0, BLOCK)
    pitch = width + BEFORE
    lines = height + ABOVE
    base = tl.maximum(first.to(tl.int32), 0) // (lines * pitch)
    line = s // pitch
    col = s - line * pitch - BEFORE
    image = line // lines
    row = line - image * lines - ABOVE
    is_pixel = (s >= 0) & (row >= 0) & (col >= 0) & (image < batch)
    pixel = ((image - base) * height + row) * width + col
    return base.to(tl.int64) * height * width, tl.where(is_pixel, pixel, 0), is_pixel


@triton.jit
def zeros(BLOCK_P: tl.constexpr, N1: tl.constexpr, N2: tl.constexpr, ACC: tl.constexpr):
    """Two accumulators."""
    second: tl.constexpr = N2 if N2 > 0 else UNUSED
    return tl.zeros((BLOCK_P, N1), dtype=ACC), tl.zeros((BLOCK_P, second), dtype=ACC)


@triton.jit
def accumulate(
    acc, acc2, a_ptr, w_ptr, first_row, first_n, pitch, plane_stride, steps,
    C: tl.constexpr, N: tl.constexpr,
    KH: tl.constexpr, KW: tl.constexpr, TOP: tl.constexpr, LEFT: tl.constexpr,
    PLANES: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_P: tl.constexpr, N1: tl.constexpr, N2: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """acc, acc2 += rows first_row .. of the matmul, columns first_n .. and first_n + N1 ...

    a_ptr: row 0 of plane 0, rows of C channels; w: (N, KH KW C + PLANES C). steps: BLOCK_K numbers
    of a run each, in all; no constant, or the compiler unrolls the loop.
    """
    RUN: tl.constexpr = KW * C
    RUN_STEPS: tl.constexpr = (RUN + BLOCK_K - 1) // BLOCK_K
    PLANE_STEPS: tl.constexpr = (C + BLOCK_K - 1) // BLOCK_K
    K: tl.constexpr = KH * RUN + PLANES * C
    WHOLE: tl.constexpr = RUN % BLOCK_K == 0 and (PLANES == 0 or C % BLOCK_K == 0)
    offs_k = tl.arange(0, BLOCK_K)
    a_ptrs = a_ptr + (first_row - (TOP * pitch + LEFT)) * C
    a_ptrs += tl.arange(0, BLOCK_P)[:, None] * C + offs_k[None, :]
    offs_n = first_n + tl.arange(0, N1)
    w_ptrs = w_ptr + offs_n[:, None] * K + offs_k[None, :]
    if N2 > 0:
        offs_n2 = first_n + N1 + tl.arange(0, N2)
        w2_ptrs = w_ptr + offs_n2[:, None] * K + offs_k[None, :]
    for step in range(steps):
        if C % BLOCK_K == 0:
            # All taps of some channels, then the next: their rows overlap, and lie in L1 by then.
            part = step // (KH * KW)
            tap = step - part * (KH * KW)
            run = tap // KW
            k = (tap - run * KW) * C + part * BLOCK_K
        else:
            run = step // RUN_STEPS
            k = (step - run * RUN_STEPS) * BLOCK_K
        offset_a = (run * pitch).to(tl.int64) * C + k
        offset_w = run * RUN + k
        length = RUN - k
        if PLANES > 0:
            over = step - KH * RUN_STEPS
            plane = over // PLANE_STEPS
            plane_k = (over - plane * PLANE_STEPS) * BLOCK_K
            at_pixel = (plane + 1).to(tl.int64) * plane_stride + (TOP * pitch + LEFT) * C + plane_k
            offset_a = tl.where(over >= 0, at_pixel, offset_a)
            offset_w = tl.where(over >= 0, KH * RUN + plane * C + plane_k, offset_w)
            length = tl.where(over >= 0, C - plane_k, length)
        # A run's last block may reach beyond it; zeros there keep out what lies behind, even a NaN.
        mask_k = (offs_k < length)[None, :]
        if WHOLE:
            a = tl.load(a_ptrs + offset_a, cache_modifier=".ca")
        else:
            a = tl.load(a_ptrs + offset_a, mask=mask_k, other=0.0)
        w = load_weights(w_ptrs + offset_w, mask_k, offs_n, N=N, BLOCK=N1 + N2, WHOLE=WHOLE)
        acc = tl.dot(a, tl.trans(w), acc, input_precision=PRECISION, out_dtype=acc.dtype)
        if N2 > 0:
            w = load_weights(w2_ptrs + offset_w, mask_k, offs_n2, N=N, BLOCK=N1 + N2, WHOLE=WHOLE)
            acc2 = tl.dot(a, tl.trans(w), acc2, input_precision=PRECISION, out_dtype=acc.dtype)
    return acc, acc2


@triton.jit
def load_weights(ptrs, mask_k, offs_n, N: tl.constexpr, BLOCK: tl.constexpr, WHOLE: tl.constexpr):
    """A block of weights (columns, K), masked only where it may end in the middle."""
    if N % BLOCK != 0:
        w = tl.load(ptrs, mask=mask_k & (offs_n < N)[:, None], other=0.0)
    elif WHOLE:
        w = tl.load(ptrs)
    else:
        w = tl.load(ptrs, mask=mask_k, other=0.0)
    return w


@triton.jit
def weight_gradient_tile(
    e_ptr, g_ptr, partial_ptr, tile, split, pitch, plane_stride, blocks, steps,
    C: tl.constexpr, D: tl.constexpr,
    KH: tl.constexpr, KW: tl.constexpr, TOP: tl.constexpr, LEFT: tl.constexpr,
    PLANES: tl.constexpr, ACC: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_P: tl.constexpr, N1: tl.constexpr, N2: tl.constexpr, BLOCK_M: tl.constexpr,
):  # fmt: skip
    """A tile of partial (splits, K, D): sums over a split's rows of E[row + tap] x g[row].

    E has C channels a row and K = (KH KW + PLANES) C columns of the matmul, g D channels and zeros
    in rows that are no pixels. A split has `steps` blocks of rows, the last one what remains.
    """
    RUN: tl.constexpr = KW * C
    K: tl.constexpr = (KH * KW + PLANES) * C
    BLOCK_N: tl.constexpr = N1 + N2
    blocks_n: tl.constexpr = (D + BLOCK_N - 1) // BLOCK_N
    split = split.to(tl.int64)
    k = tile // blocks_n * BLOCK_M + tl.arange(0, BLOCK_M)
    mask_k = k < K
    run = k // RUN
    offset = ((run - TOP) * pitch - LEFT).to(tl.int64) * C + k % RUN
    if PLANES > 0:
        over = k - KH * RUN
        at_pixel = (over // C + 1).to(tl.int64) * plane_stride + over % C
        offset = tl.where(over >= 0, at_pixel, offset)
    offs_n = tile % blocks_n * BLOCK_N + tl.arange(0, N1)
    acc, acc2 = zeros(BLOCK_M, N1, N2, ACC)
    rows = tl.arange(0, BLOCK_P)
    first = split * steps * BLOCK_P
    e_ptrs = e_ptr + first * C + (rows[:, None] * C + offset[None, :])
    g_ptrs = g_ptr + first * D + (rows[:, None] * D + offs_n[None, :])
    if N2 > 0:
        offs_n2 = tile % blocks_n * BLOCK_N + N1 + tl.arange(0, N2)
        g2_ptrs = g_ptr + first * D + (rows[:, None] * D + offs_n2[None, :])
    for _ in range(tl.minimum(steps, blocks - split * steps)):
        if K % BLOCK_M != 0:
            e = tl.load(e_ptrs, mask=mask_k[None, :], other=0.0)
        else:
            e = tl.load(e_ptrs)
        g = load_columns(g_ptrs, offs_n, N=D, BLOCK=BLOCK_N)
        acc = tl.dot(tl.trans(e), g, acc, input_precision=PRECISION, out_dtype=ACC)
        if N2 > 0:
            g = load_columns(g2_ptrs, offs_n2, N=D, BLOCK=BLOCK_N)
            acc2 = tl.dot(tl.trans(e), g, acc2, input_precision=PRECISION, out_dtype=ACC)
            g2_ptrs += BLOCK_P * D
        e_ptrs += BLOCK_P * C
        g_ptrs += BLOCK_P * D
    partial_ptr += split * (K * D)
    place = k[:, None] * D
    mask = mask_k[:, None]
    tl.store(partial_ptr + (place + offs_n[None, :]), acc, mask=mask & (offs_n < D)[None, :])
    if N2 > 0:
        tl.store(partial_ptr + (place + offs_n2[None, :]), acc2, mask=mask & (offs_n2 < D)[None, :])


@triton.jit
def load_columns(ptrs, offs_n, N: tl.constexpr, BLOCK: tl.constexpr):
    """A block (rows, columns), masked only where the columns may end in the middle."""
    mask = (offs_n < N)[None, :]
    return tl.load(ptrs, mask=mask, other=0.0) if N % BLOCK != 0 else tl.load(ptrs)


@triton.jit
def weight_gradient_kernel(
    e, g, partial, firsts, blocks, steps, SHAPES: tl.constexpr,
    ACC: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """partial (splits, K, D): sums over a split's rows of e (rows, K) x g (rows, D), for each of
    several; the programs of each begin at firsts."""
    pid = tl.program_id(0)
    for i in tl.static_range(len(e)):
        if (pid >= firsts[i]) & (pid < firsts[i + 1]):
            own = pid - firsts[i]
            weight_gradient_tile(
                e[i], g[i], partial[i], own % SHAPES[i][2], own // SHAPES[i][2], 0, 0,
                blocks[i], steps[i], C=SHAPES[i][0], D=SHAPES[i][1],
                KH=1, KW=1, TOP=0, LEFT=0, PLANES=0, ACC=ACC, PRECISION=PRECISION,
                BLOCK_P=SHAPES[i][3], N1=SHAPES[i][4], N2=SHAPES[i][5], BLOCK_M=SHAPES[i][6],
            )  # fmt: skip


def weight_gradients(es: Sequence[Tensor], gs: Sequence[Tensor]) -> list[Tensor]:
    """Parts (splits, K, D), to be added, of each sum over rows of e (1, rows, K) x g (1, rows, D).

    Sums are float32 (float64 for float64), in an order that only the shapes decide.
    """
    shapes = [(e.shape[1], e.shape[2], g.shape[2]) for e, g in zip(es, gs, strict=True)]
    plans = [gradient_plan(*shape, es[0], len(es)) for shape in shapes]
    parts = [
        torch.empty((one.splits, k, d), dtype=wide_dtype(es[0].dtype), device=es[0].device)
        for one, (_, k, d) in zip(plans, shapes, strict=True)
    ]
    for places in launched_together([one.tiling for one in plans]):
        of_es, of_gs, of_parts = ([ts[i] for i in places] for ts in (es, gs, parts))
        _weight_gradients(of_es, of_gs, of_parts, [plans[i] for i in places])
    return parts


def _weight_gradients(
    es: Sequence[Tensor], gs: Sequence[Tensor], parts: Sequence[Tensor], plans: list[GradientPlan]
) -> None:
    firsts = firsts_of(one.tiles * one.splits for one in plans)
    shapes = tuple(
        (e.shape[2], g.shape[2], one.tiles, *one.tiling.of_tile())
        for e, g, one in zip(es, gs, plans, strict=True)
    )
    tiling = plans[0].tiling
    planned = plan(
        (firsts[-1],), firsts=firsts, blocks=tuple([one.blocks for one in plans]),
        steps=tuple([one.steps for one in plans]), SHAPES=shapes,
        num_warps=tiling.num_warps, num_stages=tiling.num_stages,
        **arithmetic(es[0].dtype, uses_tf32(es[0].dtype)),
    )  # fmt: skip
    launch(
        weight_gradient_kernel, planned, es[0].device,
        e=tuple(es), g=tuple(gs), partial=tuple(parts),
    )  # fmt: skip
