"""Patches of images under the taps of a convolution, side by side, and the reverse, their sum."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .geometry import Rows, Taps, cdiv, empty_channels_last
from .launch import launch, plan


@triton.jit
def patches_kernel(
    image_ptr, out_ptr, count, batch, height, width, height_out, width_out,
    C: tl.constexpr, KH: tl.constexpr, KW: tl.constexpr, TOP: tl.constexpr, LEFT: tl.constexpr,
    STRIDE: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """out (count, KH KW C): what the taps of each output pixel read; zeros beyond the last one."""
    K: tl.constexpr = KH * KW * C
    offs_s = tl.program_id(0) * BLOCK_P + tl.arange(0, BLOCK_P)
    pixel = offs_s[:, None]
    k = (tl.program_id(1) * BLOCK_K + tl.arange(0, BLOCK_K))[None, :]
    tap = k // C
    row = pixel // width_out % height_out * STRIDE + tap // KW - TOP
    col = pixel % width_out * STRIDE + tap % KW - LEFT
    image = pixel // (height_out * width_out)
    inside = (row >= 0) & (row < height) & (col >= 0) & (col < width) & (image < batch)
    source = (image.to(tl.int64) * height + row) * width + col
    v = tl.load(image_ptr + source * C + k % C, mask=inside & (k < K), other=0.0)
    out = out_ptr + pixel.to(tl.int64) * K + k
    tl.store(out, v, mask=(pixel < count) & (k < K))


def patches(image: Tensor, taps: Taps, rows: Rows) -> Tensor:
    """(1, total, kh kw C): the taps' inputs for each of the output pixels `rows` (of a 1x1 kernel).

    image: (B, C, H, W) channels_last.
    """
    channels = image.shape[1]
    k = taps.kh * taps.kw * channels
    out = torch.empty((1, rows.total, k), dtype=image.dtype, device=image.device)
    block_k = min(64, triton.next_power_of_2(k))
    planned = plan(
        (rows.total // 32, cdiv(k, block_k)), count=rows.total,
        batch=image.shape[0], height=image.shape[2], width=image.shape[3],
        height_out=rows.height, width_out=rows.width,
        C=channels, STRIDE=taps.stride, BLOCK_P=32, BLOCK_K=block_k, num_warps=4,
        **taps.constants(),
    )  # fmt: skip
    launch(patches_kernel, planned, image.device, image_ptr=image, out_ptr=out)
    return out


@triton.jit
def fold_kernel(
    patches_ptr, bias_ptr, y_ptr, n_pixels, height, width, height_in, width_in,
    C: tl.constexpr, KH: tl.constexpr, KW: tl.constexpr, TOP: tl.constexpr, LEFT: tl.constexpr,
    STRIDE: tl.constexpr, BIAS: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """y (P, C): the sum of all patches' numbers for each pixel, in the order of taps, plus bias."""
    pixel = tl.program_id(0).to(tl.int64) * BLOCK_P + tl.arange(0, BLOCK_P)
    offs_c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
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


def fold(
    given: Tensor, bias: Tensor | None, taps: Taps, rows: Rows, like: Tensor, size: tuple[int, int]
) -> Tensor:
    """The adjoint of `patches`, plus bias (C,): (B, C, *size) in the dtype of `like`.

    given: (1, total, kh kw C), not narrower than float32.
    """
    channels = given.shape[2] // (taps.kh * taps.kw)
    y = empty_channels_last(like, channels, size)
    count = y.shape[0] * size[0] * size[1]
    block_c = min(64, triton.next_power_of_2(channels))
    planned = plan(
        (cdiv(count, 32), cdiv(channels, block_c)), n_pixels=count,
        height=size[0], width=size[1], height_in=rows.height, width_in=rows.width,
        C=channels, STRIDE=taps.stride, BIAS=bias is not None, BLOCK_P=32, BLOCK_C=block_c,
        num_warps=4, **taps.constants(),
    )  # fmt: skip
    bias_ptr = given if bias is None else bias
    launch(fold_kernel, planned, like.device, patches_ptr=given, bias_ptr=bias_ptr, y_ptr=y)
    return y
