"""Patches of images under the taps of a convolution, side by side, and the reverse, their sum.

Several images share a launch.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from .elementwise import widen
from .geometry import Rows, Taps, cdiv, empty_channels_last
from .launch import firsts_of, launch, plan, wide_dtype

BLOCK_P = 32  # pixels of a program


@triton.jit
def patches_tile(
    image_ptr, out_ptr, sums_ptr, pid, count, batch, height, width, height_out, width_out,
    C: tl.constexpr, KH: tl.constexpr, KW: tl.constexpr, TOP: tl.constexpr, LEFT: tl.constexpr,
    STRIDE: tl.constexpr, BLOCK_K: tl.constexpr, STORED: tl.constexpr, SUMMED: tl.constexpr,
    BLOCK_P: tl.constexpr,
):  # fmt: skip
    """out (count, KH KW C): what the taps of each output pixel read; zeros beyond the last one.

    sums (blocks, KH KW C): sums over each BLOCK_P of these. Only what is STORED and SUMMED.
    """
    K: tl.constexpr = KH * KW * C
    blocks_k: tl.constexpr = (K + BLOCK_K - 1) // BLOCK_K
    offs_s = pid // blocks_k * BLOCK_P + tl.arange(0, BLOCK_P)
    pixel = offs_s[:, None]
    k = (pid % blocks_k * BLOCK_K + tl.arange(0, BLOCK_K))[None, :]
    tap = k // C
    row = pixel // width_out % height_out * STRIDE + tap // KW - TOP
    col = pixel % width_out * STRIDE + tap % KW - LEFT
    image = pixel // (height_out * width_out)
    inside = (row >= 0) & (row < height) & (col >= 0) & (col < width) & (image < batch)
    source = (image.to(tl.int64) * height + row) * width + col
    v = tl.load(image_ptr + source * C + k % C, mask=inside & (k < K), other=0.0)
    if STORED:
        out = out_ptr + pixel.to(tl.int64) * K + k
        tl.store(out, v, mask=(pixel < count) & (k < K))
    if SUMMED:
        offs_k = pid % blocks_k * BLOCK_K + tl.arange(0, BLOCK_K)
        sums = sums_ptr + (pid // blocks_k).to(tl.int64) * K + offs_k
        tl.store(sums, tl.sum(widen(v), axis=0), mask=offs_k < K)


@triton.jit
def patches_kernel(images, outs, sums, firsts, sizes, SHAPES: tl.constexpr, BLOCK_P: tl.constexpr):
    """`patches_tile` of each image, whose programs begin at firsts; the rest as it takes them."""
    pid = tl.program_id(0)
    for i in tl.static_range(len(images)):
        if (pid >= firsts[i]) & (pid < firsts[i + 1]):
            patches_tile(
                images[i], outs[i], sums[i], pid - firsts[i], sizes[i][0], sizes[i][1], sizes[i][2],
                sizes[i][3], sizes[i][4], sizes[i][5],
                C=SHAPES[i][0], KH=SHAPES[i][1], KW=SHAPES[i][2], TOP=SHAPES[i][3],
                LEFT=SHAPES[i][4], STRIDE=SHAPES[i][5], BLOCK_K=SHAPES[i][6],
                STORED=SHAPES[i][7], SUMMED=SHAPES[i][8], BLOCK_P=BLOCK_P,
            )  # fmt: skip


class Read(NamedTuple):
    """An image (B, C, H, W), channels_last, to be read by taps at each of the output pixels `rows`
    (of a 1x1 kernel). What is read may be stored, or summed over pixels, or both."""

    image: Tensor
    taps: Taps
    rows: Rows
    stored: bool = True
    summed: bool = False


def patches(reads: Sequence[Read]) -> tuple[list[Tensor], list[Tensor]]:
    """(1, total, kh kw C) for each that is stored, and (blocks, kh kw C) for each that is summed:
    parts of its sum, not narrower than float32."""
    outs, sums, counts, sizes, shapes = [], [], [], [], []
    for image, taps, rows, stored, summed in reads:
        batch, channels, height, width = image.shape
        k, blocks = taps.kh * taps.kw * channels, rows.total // BLOCK_P
        dtype, device = image.dtype, image.device
        size = 1, rows.total, k
        outs.append(torch.empty(size, dtype=dtype, device=device) if stored else image)
        wide = wide_dtype(dtype)
        sums.append(torch.empty((blocks, k), dtype=wide, device=device) if summed else image)
        block_k = min(64, triton.next_power_of_2(k))
        counts.append(blocks * cdiv(k, block_k))
        sizes.append((rows.total, batch, height, width, rows.height, rows.width))
        shapes.append((channels, *taps, block_k, stored, summed))
    firsts = firsts_of(counts)
    planned = plan(
        (firsts[-1],), firsts=firsts, sizes=tuple(sizes), SHAPES=tuple(shapes), BLOCK_P=BLOCK_P,
        num_warps=4,
    )  # fmt: skip
    images = tuple([read.image for read in reads])
    launch(
        patches_kernel, planned, images[0].device,
        images=images, outs=tuple(outs), sums=tuple(sums),
    )  # fmt: skip
    return (
        [out for out, read in zip(outs, reads, strict=True) if read.stored],
        [part for part, read in zip(sums, reads, strict=True) if read.summed],
    )


@triton.jit
def fold_tile(
    patches_ptr, bias_ptr, y_ptr, pid, n_pixels, height, width, height_in, width_in,
    C: tl.constexpr, KH: tl.constexpr, KW: tl.constexpr, TOP: tl.constexpr, LEFT: tl.constexpr,
    STRIDE: tl.constexpr, BLOCK_C: tl.constexpr, BIAS: tl.constexpr, BLOCK_P: tl.constexpr,
):  # fmt: skip
    """y (P, C): the sum of all patches' numbers for each pixel, in the order of taps, plus bias."""
    blocks_c: tl.constexpr = (C + BLOCK_C - 1) // BLOCK_C
    pixel = (pid // blocks_c).to(tl.int64) * BLOCK_P + tl.arange(0, BLOCK_P)
    offs_c = pid % blocks_c * BLOCK_C + tl.arange(0, BLOCK_C)
    p = pixel.to(tl.int32)
    row = p // width % height + TOP
    col = p % width + LEFT
    image = (p // (height * width)).to(tl.int64)
    mask = (pixel < n_pixels)[:, None] & (offs_c < C)[None, :]
    total = tl.zeros((BLOCK_P, BLOCK_C), dtype=patches_ptr.dtype.element_ty)
    if BIAS:
        total += tl.load(bias_ptr + offs_c, mask=offs_c < C, other=0.0)[None, :]
    for i in tl.static_range(KH):
        for j in tl.static_range(KW):
            # The patch whose tap (i, j) reads this pixel, if there is one.
            r = (row - i) // STRIDE
            c = (col - j) // STRIDE
            hit = (row >= i) & (col >= j) & (r < height_in) & (c < width_in)
            hit &= (r * STRIDE == row - i) & (c * STRIDE == col - j)
            patch = (image * height_in + r) * width_in + c
            offset = patch * (KH * KW * C) + (i * KW + j) * C
            ptrs = patches_ptr + offset[:, None] + offs_c[None, :]
            total += tl.load(ptrs, mask=mask & hit[:, None], other=0.0)
    out = y_ptr + pixel[:, None] * C + offs_c[None, :]
    tl.store(out, total.to(y_ptr.dtype.element_ty), mask=mask)


@triton.jit
def fold_kernel(
    patches, bias, y, firsts, sizes,
    SHAPES: tl.constexpr, BIAS: tl.constexpr, BLOCK_P: tl.constexpr,
):  # fmt: skip
    """`fold_tile` of each image, whose programs begin at firsts; the rest as it takes them."""
    pid = tl.program_id(0)
    for i in tl.static_range(len(y)):
        if (pid >= firsts[i]) & (pid < firsts[i + 1]):
            fold_tile(
                patches[i], bias[i], y[i], pid - firsts[i], sizes[i][0], sizes[i][1], sizes[i][2],
                sizes[i][3], sizes[i][4],
                C=SHAPES[i][0], KH=SHAPES[i][1], KW=SHAPES[i][2], TOP=SHAPES[i][3],
                LEFT=SHAPES[i][4], STRIDE=SHAPES[i][5], BLOCK_C=SHAPES[i][6],
                BIAS=BIAS, BLOCK_P=BLOCK_P,
            )  # fmt: skip


class Folded(NamedTuple):
    """An image to be made of patches (1, total, kh kw C), not narrower than float32.

    size: its rows and columns. dtype: its own.
    """

    given: Tensor
    taps: Taps
    rows: Rows
    size: tuple[int, int]
    dtype: torch.dtype


def fold(jobs: Sequence[Folded], biases: Sequence[Tensor] = ()) -> list[Tensor]:
    """The adjoint of `patches`, plus a bias (C,) for each if there are any: (B, C, *size)."""
    ys, counts, sizes, shapes = [], [], [], []
    for given, taps, rows, (height, width), dtype in jobs:
        channels = given.shape[2] // (taps.kh * taps.kw)
        like = given.new_empty((rows.batch, 0, 0, 0), dtype=dtype)
        ys.append(empty_channels_last(like, channels, (height, width)))
        pixels = rows.batch * height * width
        block_c = min(64, triton.next_power_of_2(channels))
        counts.append(cdiv(pixels, BLOCK_P) * cdiv(channels, block_c))
        sizes.append((pixels, height, width, rows.height, rows.width))
        shapes.append((channels, *taps, block_c))
    firsts = firsts_of(counts)
    planned = plan(
        (firsts[-1],), firsts=firsts, sizes=tuple(sizes), SHAPES=tuple(shapes),
        BIAS=len(biases) > 0, BLOCK_P=BLOCK_P, num_warps=4,
    )  # fmt: skip
    given_patches = tuple([job.given for job in jobs])
    launch(
        fold_kernel, planned, given_patches[0].device, patches=given_patches,
        bias=tuple(biases) or given_patches, y=tuple(ys),
    )  # fmt: skip
    return ys
