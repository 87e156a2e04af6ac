"""Convolutions with padding on some sides, their adjoints and their weight gradients.

A program computes BLOCK_P pixels x BLOCK_N columns; programs that share pixels are neighbours, so
that the image comes from memory once. Images are (B, C, H, W) in any memory order; channels_last
is the fast one. Results are channels_last. Sums are float32 (float64 for float64).
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .geometry import Taps, empty_channels_last, n_pixels, strides_of
from .launch import arithmetic, choose, launch, wide_dtype
from .taps import (
    convolve,
    convolve_transposed,
    in_image,
    load_operand,
    pixel_block,
    pixel_pointers,
    widen,
)
from .weights import pack, unpack

# A weight gradient is split over pixels until about this many programs share it. A constant, so
# that the order of its additions depends on the shape alone, not on the card.
WANTED_PROGRAMS = 512


@triton.jit
def conv_kernel(
    x_ptr, x_strides, w_ptr, bias_ptr, y_ptr,
    n_pixels, height_out, width_out, height, width, steps,
    C: tl.constexpr, D: tl.constexpr,
    KH: tl.constexpr, KW: tl.constexpr, TOP: tl.constexpr, LEFT: tl.constexpr,
    STRIDE: tl.constexpr, BIAS: tl.constexpr, ACC: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_P: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """y (P, D) = conv(x) + bias; w: (T, C, D)."""
    pid = tl.program_id(0).to(tl.int64)
    blocks_n: tl.constexpr = (D + BLOCK_N - 1) // BLOCK_N
    offs_p, image, row, col, mask_p = pixel_block(
        pid // blocks_n * BLOCK_P, n_pixels, height_out, width_out, BLOCK_P
    )
    offs_n = pid % blocks_n * BLOCK_N + tl.arange(0, BLOCK_N)
    mask_n = offs_n < D
    acc = tl.zeros((BLOCK_P, BLOCK_N), dtype=ACC)
    acc = convolve(
        acc, x_ptr, x_strides, w_ptr, image=image, row=row, col=col, mask_p=mask_p,
        height=height, width=width, offs_n=offs_n, mask_n=mask_n, steps=steps,
        CHANNELS=C, N=D, PRECISION=PRECISION, BLOCK_K=BLOCK_K,
        KH=KH, KW=KW, TOP=TOP, LEFT=LEFT, STRIDE=STRIDE,
    )  # fmt: skip
    if BIAS:
        acc += widen(tl.load(bias_ptr + offs_n, mask=mask_n, other=0.0))[None, :]
    tl.store(
        y_ptr + offs_p[:, None] * D + offs_n[None, :],
        acc.to(y_ptr.dtype.element_ty),
        mask=mask_p[:, None] & mask_n[None, :],
    )


@triton.jit
def conv_transposed_kernel(
    g_ptr, g_strides, w_ptr, bias_ptr, y_ptr,
    n_cells, cell_rows, cell_cols, height_out, width_out, height, width, steps,
    C: tl.constexpr, D: tl.constexpr,
    KH: tl.constexpr, KW: tl.constexpr, TOP: tl.constexpr, LEFT: tl.constexpr,
    STRIDE: tl.constexpr, BIAS: tl.constexpr, ACC: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_P: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """y (P, C) = the adjoint of a convolution C -> D at g, plus bias; w: (T, C, D).

    Output pixels are taken in cells of STRIDE x STRIDE: a program has the same place in each of
    its cells, hence the same taps.
    """
    pid = tl.program_id(0).to(tl.int64)
    blocks_n: tl.constexpr = (C + BLOCK_N - 1) // BLOCK_N
    _, image, row, col, mask_p = pixel_block(
        pid // blocks_n * BLOCK_P, n_cells, cell_rows, cell_cols, BLOCK_P
    )
    row_phase = tl.program_id(1) // STRIDE
    col_phase = tl.program_id(1) % STRIDE
    offs_n = pid % blocks_n * BLOCK_N + tl.arange(0, BLOCK_N)
    mask_n = offs_n < C
    acc = tl.zeros((BLOCK_P, BLOCK_N), dtype=ACC)
    acc = convolve_transposed(
        acc, g_ptr, g_strides, w_ptr, image=image, row=row, col=col, mask_p=mask_p,
        height=height, width=width, offs_n=offs_n, mask_n=mask_n, steps=steps,
        CHANNELS=D, N=C, PRECISION=PRECISION, BLOCK_K=BLOCK_K,
        KH=KH, KW=KW, TOP=TOP, LEFT=LEFT,
        STRIDE=STRIDE, row_phase=row_phase, col_phase=col_phase,
    )  # fmt: skip
    if BIAS:
        acc += widen(tl.load(bias_ptr + offs_n, mask=mask_n, other=0.0))[None, :]
    row_out = row * STRIDE + row_phase
    col_out = col * STRIDE + col_phase
    pixel = (image.to(tl.int64) * height_out + row_out) * width_out + col_out
    inside = mask_p & in_image(row_out, col_out, height_out, width_out)
    tl.store(
        y_ptr + pixel[:, None] * C + offs_n[None, :],
        acc.to(y_ptr.dtype.element_ty),
        mask=inside[:, None] & mask_n[None, :],
    )


@triton.jit
def weight_gradient_kernel(
    x_ptr, x_strides, kept_ptr, g_ptr, g_strides, partial_ptr,
    n_pixels, height_out, width_out, height, width, steps,
    C: tl.constexpr, D: tl.constexpr,
    KH: tl.constexpr, KW: tl.constexpr, TOP: tl.constexpr, LEFT: tl.constexpr,
    STRIDE: tl.constexpr, ELU: tl.constexpr, DROPOUT: tl.constexpr, SCALE: tl.constexpr,
    ACC: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_P: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """partial (splits, T, K, D): sums over a split's pixels of operand[p + tap] x g[p].

    The operand is x or (dropout of) concat_elu(x), K its packed channels; g: (P, D). A split has
    `steps` blocks of pixels.
    """
    K: tl.constexpr = 2 * C if ELU else C
    blocks_n: tl.constexpr = (D + BLOCK_N - 1) // BLOCK_N
    blocks_k: tl.constexpr = (K + BLOCK_K - 1) // BLOCK_K
    tile = tl.program_id(0)
    split = tl.program_id(1).to(tl.int64)
    tap = tile // (blocks_n * blocks_k)
    first_k = tile // blocks_n % blocks_k * BLOCK_K
    offs_n = tile % blocks_n * BLOCK_N + tl.arange(0, BLOCK_N)
    mask_n = offs_n < D
    acc = tl.zeros((BLOCK_K, BLOCK_N), dtype=ACC)
    for step in range(steps):
        _, image, row, col, mask_p = pixel_block(
            (split * steps + step) * BLOCK_P, n_pixels, height_out, width_out, BLOCK_P
        )
        r = row * STRIDE + (tap // KW - TOP)
        c = col * STRIDE + (tap % KW - LEFT)
        pixel = (image.to(tl.int64) * height + r) * width + c
        operand = load_operand(
            pixel_ptrs=pixel_pointers(x_ptr, x_strides, image, r, c),
            stride_f=x_strides[3],
            kept_ptrs=kept_ptr + pixel * C if DROPOUT else None,
            inside=mask_p & in_image(r, c, height, width),
            first=first_k,
            CHANNELS=C,
            BLOCK_K=BLOCK_K,
            ELU=ELU,
            SCALE=SCALE,
        )
        g = tl.load(
            pixel_pointers(g_ptr, g_strides, image, row, col)[:, None]
            + offs_n[None, :] * g_strides[3],
            mask=mask_p[:, None] & mask_n[None, :],
            other=0.0,
        )  # (BLOCK_P, BLOCK_N)
        acc = tl.dot(tl.trans(operand), g, acc, input_precision=PRECISION, out_dtype=ACC)
    offs_k = first_k + tl.arange(0, BLOCK_K)
    row_k = (split * KH * KW + tap) * K + offs_k
    tl.store(
        partial_ptr + row_k[:, None] * D + offs_n[None, :],
        acc,
        mask=(offs_k < K)[:, None] & mask_n[None, :],
    )


def convolution(
    x: Tensor, packed: Tensor, bias: Tensor | None, taps: Taps, rows: int, cols: int
) -> Tensor:
    """conv(x) + bias at rows x cols output pixels; packed: (kh kw, C, D)."""
    _, channels, filters = packed.shape
    y = empty_channels_last(x, filters, (rows, cols))
    tiling = choose("single", min(channels, filters), x)
    count = n_pixels(y)
    launch(
        conv_kernel,
        (triton.cdiv(count, tiling.block_p) * triton.cdiv(filters, tiling.block_n),),
        x.device,
        x_ptr=x, x_strides=strides_of(x), w_ptr=packed, bias_ptr=x if bias is None else bias,
        y_ptr=y, n_pixels=count, height_out=rows, width_out=cols,
        height=x.shape[2], width=x.shape[3], steps=triton.cdiv(channels, tiling.block_k),
        C=channels, D=filters, STRIDE=taps.stride, BIAS=bias is not None,
        **taps.constants(), **arithmetic(x.dtype), **tiling.kernel_options(),
    )  # fmt: skip
    return y


def convolution_adjoint(
    g: Tensor, packed: Tensor, bias: Tensor | None, taps: Taps, rows: int, cols: int
) -> Tensor:
    """The adjoint of `convolution` from rows x cols pixels, at g (B, D, ...), plus bias (C,)."""
    _, channels, filters = packed.shape
    y = empty_channels_last(g, channels, (rows, cols))
    tiling = choose("single", min(channels, filters), g)
    n_pixels(y)
    cell_rows, cell_cols = triton.cdiv(rows, taps.stride), triton.cdiv(cols, taps.stride)
    cells = g.shape[0] * cell_rows * cell_cols
    blocks = triton.cdiv(cells, tiling.block_p) * triton.cdiv(channels, tiling.block_n)
    launch(
        conv_transposed_kernel, (blocks, taps.stride**2), g.device,
        g_ptr=g, g_strides=strides_of(g), w_ptr=packed, bias_ptr=g if bias is None else bias,
        y_ptr=y, n_cells=cells, cell_rows=cell_rows, cell_cols=cell_cols,
        height_out=rows, width_out=cols, height=g.shape[2], width=g.shape[3],
        steps=triton.cdiv(filters, tiling.block_k),
        C=channels, D=filters, STRIDE=taps.stride, BIAS=bias is not None,
        **taps.constants(), **arithmetic(g.dtype), **tiling.kernel_options(),
    )  # fmt: skip
    return y


def weight_gradient(
    x: Tensor,
    g: Tensor,
    taps: Taps,
    *,
    elu: bool = False,
    kept: Tensor | None = None,
    kept_scale: float = 1.0,
) -> Tensor:
    """Gradient (kh kw, K, D) of packed weights: of a convolution of x, (elu) concat_elu(x) or
    (kept) dropout(concat_elu(x)), given the gradient g (B, D, H', W') of its output.

    In float32 (float64 for float64), summed over pixels in an order that only the shape decides.
    """
    channels, filters = x.shape[1], g.shape[1]
    k, n_taps = (2 * channels if elu else channels), taps.kh * taps.kw
    tiling = choose("weights", min(channels, filters), x)
    blocks = triton.cdiv(n_pixels(g), tiling.block_p)
    tiles = n_taps * triton.cdiv(k, tiling.block_k) * triton.cdiv(filters, tiling.block_n)
    steps = max(1, blocks * tiles // WANTED_PROGRAMS)
    splits = max(1, triton.cdiv(blocks, steps))
    partial = torch.empty((splits, n_taps, k, filters), dtype=wide_dtype(x.dtype), device=x.device)
    launch(
        weight_gradient_kernel, (tiles, splits), x.device,
        x_ptr=x, x_strides=strides_of(x), kept_ptr=x if kept is None else kept,
        g_ptr=g, g_strides=strides_of(g), partial_ptr=partial,
        n_pixels=n_pixels(g), height_out=g.shape[2], width_out=g.shape[3],
        height=x.shape[2], width=x.shape[3], steps=steps,
        C=channels, D=filters, STRIDE=taps.stride,
        ELU=elu, DROPOUT=kept is not None, SCALE=kept_scale,
        **taps.constants(), **arithmetic(x.dtype), **tiling.kernel_options(),
    )  # fmt: skip
    return partial[0] if splits == 1 else partial.sum(0)


def forward(
    x: Tensor, weight: Tensor, bias: Tensor | None, taps: Taps, rows: int, cols: int
) -> Tensor:
    """The convolution of x (B, C, H, W) by weight (D, C, kh, kw), both float32 at least."""
    packed = pack(weight, None, x.dtype, pairs_in=False, pairs_out=False)
    return convolution(x, packed, bias, taps, rows, cols)


def forward_transposed(
    x: Tensor, weight: Tensor, bias: Tensor | None, taps: Taps, rows: int, cols: int
) -> Tensor:
    """The transposed convolution of x (B, C, H, W) by weight (C, D, kh, kw)."""
    packed = pack(weight, None, x.dtype, pairs_in=False, pairs_out=False)
    return convolution_adjoint(x, packed, bias, taps, rows, cols)


def backward(
    grad_y: Tensor, x: Tensor, weight: Tensor, taps: Taps, transposed: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of x, weight and bias of `forward` or `forward_transposed`."""
    packed = pack(weight, None, x.dtype, pairs_in=False, pairs_out=False)
    rows, cols = x.shape[2:]
    if transposed:
        # The convolution runs from y to x: its input is grad_y, and x is what it gave.
        grad_x = convolution(grad_y, packed, None, taps, rows, cols)
        grad_packed = weight_gradient(grad_y, x, taps)
    else:
        grad_x = convolution_adjoint(grad_y, packed, None, taps, rows, cols)
        grad_packed = weight_gradient(x, grad_y, taps)
    grad_weight, _ = unpack(grad_packed, weight, None, pairs_in=False, pairs_out=False)
    grad_bias = grad_y.sum((0, 2, 3), dtype=wide_dtype(x.dtype))
    return grad_x, grad_weight, grad_bias
