"""Device functions that the convolutions share: an implicit matmul, one tap at a time.

An output pixel's sum over taps and channels is a row of a matmul. Its left operand is read from the
image in place. Pixels outside the image are not loaded: a predicate gives zeros. So nothing, not
even a NaN, comes from a place that a tap must not see. Packed channels of concat_elu(x) alternate,
elu(x_0), elu(-x_0), elu(x_1), ...: both come of one load and one exponential. `weights.py` packs
the kernels in that order.
"""

import triton
import triton.language as tl


@triton.jit
def widen(v):
    """v in float32, or in float64 as it is: the dtype of every sum and elementwise function."""
    return v if v.dtype == tl.float64 else v.to(tl.float32)


@triton.jit
def elu_pair(v):
    """elu(v) and elu(-v), not narrower than float32, with one exponential."""
    x = widen(v)
    a = tl.abs(x)
    m = tl.exp(-a) - 1
    if v.dtype == tl.float32:
        # Near 0 the difference cancels; six terms of the series are exact to 2e-7 below 0.3. Other
        # dtypes round the result more coarsely than this error, or have digits to spare.
        series = -a * (1 - a / 2 * (1 - a / 3 * (1 - a / 4 * (1 - a / 5 * (1 - a / 6)))))
        m = tl.where(a < 0.3, series, m)
    return tl.where(x > 0, x, m), tl.where(x > 0, m, -x)


@triton.jit
def elu_slopes(v):
    """Derivatives of elu at v and at -v."""
    x = widen(v)
    e = tl.exp(-tl.abs(x))
    return tl.where(x > 0, 1.0, e), tl.where(x > 0, e, 1.0)


@triton.jit
def interleave(even, odd):
    """(P, N) and (P, N) -> (P, 2N), columns in turn."""
    return tl.reshape(tl.join(even, odd), (even.shape[0], 2 * even.shape[1]))


@triton.jit
def deinterleave(v):
    """(P, 2N) -> the even and the odd columns, (P, N) each."""
    return tl.split(tl.reshape(v, (v.shape[0], v.shape[1] // 2, 2)))


@triton.jit
def pixel_block(first, n_pixels, height, width, BLOCK_P: tl.constexpr):
    """BLOCK_P pixels from number `first` (int64) on: numbers, images, rows, columns, existence.

    The launchers admit less than 2**31 pixels, so positions are 32-bit: 64-bit division is slow.
    """
    offs_p = first + tl.arange(0, BLOCK_P)
    mask_p = offs_p < n_pixels
    p = offs_p.to(tl.int32)
    return offs_p, p // (height * width), p // width % height, p % width, mask_p


@triton.jit
def pixel_pointers(ptr, strides, image, row, col):
    """Pointers to channel 0 of pixels; strides of (image, row, column, channel), in elements."""
    return (
        ptr
        + image.to(tl.int64) * strides[0]
        + row.to(tl.int64) * strides[1]
        + col.to(tl.int64) * strides[2]
    )


@triton.jit
def in_image(row, col, height, width):
    """Whether pixels lie in the image."""
    return (row >= 0) & (row < height) & (col >= 0) & (col < width)


@triton.jit
def drop(positive, negative, kept, SCALE: tl.constexpr):
    """Dropout of elu(h) and elu(-h): bits 0 and 1 of `kept` say which of the two stay."""
    return (
        tl.where((kept & 1) != 0, positive * SCALE, 0.0),
        tl.where((kept & 2) != 0, negative * SCALE, 0.0),
    )


@triton.jit
def load_operand(
    pixel_ptrs, stride_f, inside, first,
    CHANNELS: tl.constexpr, BLOCK_K: tl.constexpr,
    ELU: tl.constexpr = False, kept_ptrs=None, SCALE: tl.constexpr = 1.0,
):  # fmt: skip
    """Packed channels first .. first + BLOCK_K - 1 of the pixels, (P, BLOCK_K).

    They are the channels of x itself, with ELU of concat_elu(x), and with kept_ptrs too of
    dropout(concat_elu(x)). Zero where `inside` is false and beyond the last channel.
    """
    offs_f = first // 2 + tl.arange(0, BLOCK_K // 2) if ELU else first + tl.arange(0, BLOCK_K)
    mask = inside[:, None] & (offs_f < CHANNELS)[None, :]
    v = tl.load(pixel_ptrs[:, None] + offs_f[None, :] * stride_f, mask=mask, other=0.0)
    if ELU:
        positive, negative = elu_pair(v)
        if kept_ptrs is not None:
            kept = tl.load(kept_ptrs[:, None] + offs_f[None, :], mask=mask, other=0)
            positive, negative = drop(positive, negative, kept, SCALE)
        operand = interleave(positive.to(v.dtype), negative.to(v.dtype))
    else:
        operand = v
    return operand


@triton.jit
def add_tap(
    acc, pixel_ptrs, stride_f, inside, w_ptr, w_stride_k, w_stride_n, offs_n, mask_n, steps,
    CHANNELS: tl.constexpr, PRECISION: tl.constexpr, BLOCK_K: tl.constexpr,
    ELU: tl.constexpr = False, kept_ptrs=None, SCALE: tl.constexpr = 1.0,
):  # fmt: skip
    """acc (P, N) + operand (P, K) @ w (K, N) of one tap, K the packed channels of the operand.

    steps = K / BLOCK_K, rounded up, is no constant. With a known number of iterations the compiler
    unrolls this loop for each tap. It then spills, and takes ten times as long.
    """
    K: tl.constexpr = 2 * CHANNELS if ELU else CHANNELS
    for step in range(steps):
        first = step * BLOCK_K
        operand = load_operand(
            pixel_ptrs, stride_f, inside, first, CHANNELS=CHANNELS, BLOCK_K=BLOCK_K,
            ELU=ELU, kept_ptrs=kept_ptrs, SCALE=SCALE,
        )  # fmt: skip
        offs_k = first + tl.arange(0, BLOCK_K)
        w = tl.load(
            w_ptr + offs_k[:, None] * w_stride_k + offs_n[None, :] * w_stride_n,
            mask=(offs_k < K)[:, None] & mask_n[None, :],
            other=0.0,
        )  # (BLOCK_K, BLOCK_N)
        acc = tl.dot(operand, w, acc, input_precision=PRECISION, out_dtype=acc.dtype)
    return acc


@triton.jit
def convolve(
    acc, x_ptr, x_strides, w_ptr, image, row, col, mask_p, height, width, offs_n, mask_n, steps,
    CHANNELS: tl.constexpr, N: tl.constexpr, PRECISION: tl.constexpr, BLOCK_K: tl.constexpr,
    KH: tl.constexpr = 1, KW: tl.constexpr = 1, TOP: tl.constexpr = 0, LEFT: tl.constexpr = 0,
    STRIDE: tl.constexpr = 1, ELU: tl.constexpr = False,
    kept_ptr=None, SCALE: tl.constexpr = 1.0,
):  # fmt: skip
    """acc += the convolution of an image of (height, width) at output pixels (row, col).

    w: (KH * KW, K, N), packed. Tap (i, j) reads (STRIDE * row + i - TOP, STRIDE * col + j - LEFT).
    ELU, kept_ptr, SCALE: what is convolved, as in `load_operand`.
    """
    K: tl.constexpr = 2 * CHANNELS if ELU else CHANNELS
    row = row * STRIDE - TOP
    col = col * STRIDE - LEFT
    x_ptrs = pixel_pointers(x_ptr, x_strides, image, row, col)  # of tap (0, 0)
    kept_ptrs = kept_ptr
    if kept_ptr is not None:
        kept_ptrs += ((image.to(tl.int64) * height + row) * width + col) * CHANNELS
    for i in tl.static_range(KH):
        for j in tl.static_range(KW):
            acc = add_tap(
                acc,
                pixel_ptrs=x_ptrs + (i * x_strides[1] + j * x_strides[2]), stride_f=x_strides[3],
                kept_ptrs=None if kept_ptr is None else kept_ptrs + (i * width + j) * CHANNELS,
                inside=mask_p & in_image(row + i, col + j, height, width),
                w_ptr=w_ptr + (i * KW + j) * K * N, w_stride_k=N, w_stride_n=1,
                offs_n=offs_n, mask_n=mask_n, steps=steps,
                CHANNELS=CHANNELS, PRECISION=PRECISION, BLOCK_K=BLOCK_K, ELU=ELU, SCALE=SCALE,
            )  # fmt: skip
    return acc


@triton.jit
def convolve_transposed(
    acc, g_ptr, g_strides, w_ptr, image, row, col, mask_p, height, width, offs_n, mask_n, steps,
    CHANNELS: tl.constexpr, N: tl.constexpr, PRECISION: tl.constexpr, BLOCK_K: tl.constexpr,
    KH: tl.constexpr, KW: tl.constexpr, TOP: tl.constexpr, LEFT: tl.constexpr,
    STRIDE: tl.constexpr = 1, row_phase=0, col_phase=0,
):  # fmt: skip
    """acc += the adjoint of a convolution at the pixels (STRIDE * row + row_phase, likewise col).

    g: the image of (height, width) to read, CHANNELS deep. w: (KH * KW, N, CHANNELS), packed as
    for the convolution. Only taps i that hit an image row, i = row_phase + TOP mod STRIDE, count.
    """
    row = row + (row_phase + TOP) // STRIDE
    col = col + (col_phase + LEFT) // STRIDE
    g_ptrs = pixel_pointers(g_ptr, g_strides, image, row, col)  # of the first tap that counts
    for k in tl.static_range((KH + STRIDE - 1) // STRIDE):
        for m in tl.static_range((KW + STRIDE - 1) // STRIDE):
            i = (row_phase + TOP) % STRIDE + k * STRIDE
            j = (col_phase + LEFT) % STRIDE + m * STRIDE
            inside = mask_p & in_image(row - k, col - m, height, width)
            mask_w = mask_n
            if STRIDE > 1:
                # As blocks: the interpreter makes integers of a scalar truth that meets a block.
                inside = inside & (row * 0 + i < KH) & (col * 0 + j < KW)
                mask_w = mask_n & (offs_n * 0 + i < KH) & (offs_n * 0 + j < KW)
            acc = add_tap(
                acc,
                pixel_ptrs=g_ptrs - (k * g_strides[1] + m * g_strides[2]), stride_f=g_strides[3],
                inside=inside,
                w_ptr=w_ptr + (i * KW + j) * N * CHANNELS, w_stride_k=1, w_stride_n=CHANNELS,
                offs_n=offs_n, mask_n=mask_w, steps=steps,
                CHANNELS=CHANNELS, PRECISION=PRECISION, BLOCK_K=BLOCK_K,
            )  # fmt: skip
    return acc
