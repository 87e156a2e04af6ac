"""Convolutions with padding on some sides and a stride, their adjoints and weight gradients.

There are a handful of them in a network, beside dozens of gated resnets. So they are made of what
is there: patches of the image side by side, one matmul, and for the adjoint a sum of patches.
Images are (B, C, H, W) channels_last; others are copied. Sums are float32 (float64 for float64).
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .elementwise import widen
from .geometry import Rows, Taps, cdiv, channels_last, empty_channels_last
from .launch import arithmetic, launch, plan, uses_tf32, wide_dtype
from .matmul import accumulate, weight_gradient, zeros
from .patches import fold, patches
from .tilings import matmul_tiling
from .weight_gradients import unpack_one
from .weights import pack_one, parts_of_one

POINT = Taps(1, 1, 0, 0)


@triton.jit
def store_linear(
    acc, bias_ptr, y_ptr, first_row, n_rows, first_n,
    D: tl.constexpr, BIAS: tl.constexpr, BLOCK: tl.constexpr, BLOCK_P: tl.constexpr,
):  # fmt: skip
    """Columns first_n .. of y (rows, D) = acc + bias."""
    offs_n = first_n + tl.arange(0, BLOCK)
    if BIAS:
        acc += widen(tl.load(bias_ptr + offs_n, mask=offs_n < D, other=0.0))[None, :]
    rows = first_row + tl.arange(0, BLOCK_P)
    tl.store(
        y_ptr + rows[:, None] * D + offs_n[None, :],
        acc.to(y_ptr.dtype.element_ty),
        mask=(rows < n_rows)[:, None] & (offs_n < D)[None, :],
    )


@triton.jit
def linear_kernel(
    a_ptr, w_ptr, bias_ptr, y_ptr, n_rows, steps,
    C: tl.constexpr, D: tl.constexpr, BIAS: tl.constexpr,
    ACC: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_P: tl.constexpr, N1: tl.constexpr, N2: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """y (rows, D) = a w^T + bias; a: rows of C, w: (D, C)."""
    blocks_n: tl.constexpr = (D + N1 + N2 - 1) // (N1 + N2)
    pid = tl.program_id(0)
    first_row = (pid // blocks_n).to(tl.int64) * BLOCK_P
    first_n = pid % blocks_n * (N1 + N2)
    acc, acc2 = zeros(BLOCK_P, N1, N2, ACC)
    acc, acc2 = accumulate(
        acc, acc2, a_ptr, w_ptr, first_row, first_n, 0, 0, steps,
        C=C, N=D, KH=1, KW=1, TOP=0, LEFT=0, PLANES=0, PRECISION=PRECISION,
        BLOCK_P=BLOCK_P, N1=N1, N2=N2, BLOCK_K=BLOCK_K,
    )  # fmt: skip
    store_linear(
        acc, bias_ptr, y_ptr, first_row, n_rows, first_n, D=D, BIAS=BIAS, BLOCK=N1, BLOCK_P=BLOCK_P
    )
    if N2 > 0:
        store_linear(
            acc2, bias_ptr, y_ptr, first_row, n_rows, first_n + N1,
            D=D, BIAS=BIAS, BLOCK=N2, BLOCK_P=BLOCK_P,
        )  # fmt: skip


def _linear(a: Tensor, w: Tensor, bias: Tensor | None, y: Tensor, n_rows: int) -> None:
    """The first n_rows rows of y (rows, D) = a w^T + bias; a (1, total, C), w (D, C)."""
    filters, channels = w.shape
    tf32 = uses_tf32(a.dtype)
    tiling = matmul_tiling(a.shape[1], filters, ((1, channels),), a.dtype, tf32)
    planned = plan(
        (a.shape[1] // tiling.block_p * cdiv(filters, tiling.block_n),), n_rows=n_rows,
        steps=cdiv(channels, tiling.block_k), C=channels, D=filters, BIAS=bias is not None,
        **arithmetic(a.dtype, tf32), **tiling.kernel_options(),
    )  # fmt: skip
    bias_ptr = y if bias is None else bias
    launch(linear_kernel, planned, a.device, a_ptr=a, w_ptr=w, bias_ptr=bias_ptr, y_ptr=y)


def _convolve(
    x: Tensor, w: Tensor, bias: Tensor | None, taps: Taps, rows: Rows
) -> tuple[Tensor, Tensor]:
    """The convolution of x by w (D, kh kw C), at the pixels of `rows`, and the patches of x."""
    read = patches(x, taps, rows)
    y = empty_channels_last(x, w.shape[0], (rows.height, rows.width))
    _linear(read, w, bias, y, rows.batch * rows.height * rows.width)
    return y, read


def _adjoint(
    g: Tensor, w: Tensor, bias: Tensor | None, taps: Taps, rows: Rows, size: tuple[int, int]
) -> tuple[Tensor, Tensor]:
    """The adjoint by w (kh kw C, D) to an image of `size`, and g (B, D, H, W) as rows."""
    read = patches(g, POINT, rows)
    spread = torch.empty((1, rows.total, w.shape[0]), dtype=wide_dtype(g.dtype), device=g.device)
    _linear(read, w, None, spread, rows.total)
    return fold(spread, bias, taps, rows, g, size), read


def forward(
    x: Tensor, weight: Tensor, bias: Tensor | None, taps: Taps, size: tuple[int, int]
) -> tuple[Tensor, Tensor]:
    """The convolution of x (B, C, H, W) by weight (D, C, kh, kw) to `size`, and the packed weight.

    The weight is float32, float64 for float64 x.
    """
    packed = pack_one(weight, x.dtype)
    w, _ = parts_of_one(packed, weight.shape[0])
    rows = Rows(x.shape[0], *size, 0, 0)
    return _convolve(channels_last(x), w, bias, taps, rows)[0], packed


def forward_transposed(
    x: Tensor, weight: Tensor, bias: Tensor | None, taps: Taps, size: tuple[int, int]
) -> tuple[Tensor, Tensor]:
    """The transposed convolution of x (B, C, H, W) by weight (C, D, kh, kw), to `size`, and the
    packed weight."""
    packed = pack_one(weight, x.dtype)
    _, w = parts_of_one(packed, weight.shape[0])
    rows = Rows.of(x, POINT)
    return _adjoint(channels_last(x), w, bias, taps, rows, size)[0], packed


def backward(
    grad_y: Tensor,
    x: Tensor,
    packed: Tensor,
    weight: Tensor,
    taps: Taps,
    transposed: bool,
    *,
    need_x: bool = True,
    need_weight: bool = True,
) -> tuple[Tensor | None, Tensor | None]:
    """Gradients of x and weight of `forward` or `forward_transposed`, those that are needed."""
    x, grad_y = channels_last(x), channels_last(grad_y)
    w, w_adjoint = parts_of_one(packed, weight.shape[0])
    # The convolution runs from y to x where it is the transposed one.
    image, g = (grad_y, x) if transposed else (x, grad_y)
    rows = Rows.of(g, POINT)
    grad_x, read_image, read_g = None, None, None
    if need_x and transposed:
        grad_x, read_image = _convolve(grad_y, w, None, taps, rows)
    elif need_x:
        grad_x, read_g = _adjoint(grad_y, w_adjoint, None, taps, rows, (x.shape[2], x.shape[3]))
    if not need_weight:
        return grad_x, None
    read_image = patches(image, taps, rows) if read_image is None else read_image
    read_g = patches(g, POINT, rows) if read_g is None else read_g
    return grad_x, unpack_one(weight_gradient(read_image, read_g), weight)
