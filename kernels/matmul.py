"""The matmuls that compute every convolution, forward and backward.

A convolution is a matmul of rows by weights. Rows are as in `geometry.PaddedImages`: pixels in
order, with zeros between the images and between their rows. So each tap is at a constant distance,
and the loop needs no masks or divisions. Both operands go from global to shared memory unchanged:
on Hopper a matrix instruction with an operand in registers is asynchronous, and some versions of
Triton overwrite those registers too early.

The contracted index K, the last dimension of weights, runs over KH rows of taps of KW x C numbers,
then over PLANES images of C channels that are read at the pixel (the 1x1 convolution of a skip).

A program computes block_p pixels by n1 + n2 columns, in two accumulators: 160 = 128 + 32 columns
need no padding. A weight gradient contracts all rows, including the zeros.
"""

from __future__ import annotations

import triton
import triton.language as tl

# Columns of the second accumulator if n2 = 0; the compiler removes it.
UNUSED = tl.constexpr(16)


@triton.jit
def row_of(pixel, size, G: tl.constexpr):
    """The row of a pixel."""
    width = size[2]
    line = pixel // width
    padded = (line + (line // size[1] + 1) * G.above) * (width + G.before)
    return padded + G.before + pixel - line * width


@triton.jit
def rows_of_pixels(first, size, G: tl.constexpr):
    """Rows (`geometry.PaddedImages`) of block_p pixels starting at `first`, in B, H, W order.

    Returns (row of the first int64, int32 offsets from it (block_p,), mask (block_p,)): 64-bit
    division is slow, and 64-bit offsets take twice the registers.
    """
    base = row_of(first, size, G)
    pixel = first + tl.arange(0, G.block_p)
    is_pixel = pixel < size[0] * size[1] * size[2]
    row = row_of(tl.where(is_pixel, pixel, first), size, G)
    return base.to(tl.int64), row - base, is_pixel


@triton.jit
def zeros(ROWS: tl.constexpr, G: tl.constexpr):
    """Two accumulators, (ROWS, n1) and (ROWS, n2)."""
    # Triton 3.6 does not accept a field of a geometry in a tuple.
    first: tl.constexpr = G.n1
    second: tl.constexpr = G.n2 if G.n2 > 0 else UNUSED
    return tl.zeros((ROWS, first), dtype=G.acc), tl.zeros((ROWS, second), dtype=G.acc)


@triton.jit
def offset_of(
    k, first_tap, pitch, plane_stride, C: tl.constexpr, PLANES: tl.constexpr, G: tl.constexpr
):
    """Distance of the contracted number k from the first channel of a pixel's first tap."""
    RUN: tl.constexpr = G.taps.kw * C
    run = k // RUN
    offset = (run * pitch).to(tl.int64) * C + (k - run * RUN)
    if PLANES > 0:
        over = k - G.taps.kh * RUN
        plane = over // C
        at_pixel = first_tap * C + over - plane * C
        at_pixel += (plane + 1).to(tl.int64) * plane_stride
        offset = tl.where(over >= 0, at_pixel, offset)
    return offset


@triton.jit
def matmul(
    a_ptr, w_ptr, pid, size, plane_stride, steps,
    C: tl.constexpr, N: tl.constexpr, PLANES: tl.constexpr, G: tl.constexpr,
):  # fmt: skip
    """The tile of program `pid` in a product of pixels and N columns.

    Returns the accumulators (block_p, n1) and (block_p, n2), the index of the block of pixels, the
    first column, and the result of `rows_of_pixels` for the block. a: planes of rows of C channels;
    w: (N, K). size: (batch, height, width). steps: number of steps of block_k; not a constexpr, or
    the compiler unrolls the loop.
    """
    BLOCK_N: tl.constexpr = G.n1 + G.n2
    BLOCK_K: tl.constexpr = G.block_k
    blocks_n: tl.constexpr = (N + BLOCK_N - 1) // BLOCK_N
    block = pid // blocks_n
    first = block * G.block_p
    first_n = pid % blocks_n * BLOCK_N
    base, rows, is_pixel = rows_of_pixels(first, size, G)
    acc, acc2 = zeros(G.block_p, G)
    a_ptr += base * C
    pitch = size[2] + G.before
    first_tap = G.taps.top * pitch + G.taps.left  # rows from the first tap to the pixel
    TAPS: tl.constexpr = G.taps.kh * G.taps.kw
    K: tl.constexpr = (TAPS + PLANES) * C
    WHOLE: tl.constexpr = K % BLOCK_K == 0
    IN_ONE_TAP: tl.constexpr = C % BLOCK_K == 0
    offs_k = tl.arange(0, BLOCK_K)
    a_ptrs = a_ptr + (rows - first_tap)[:, None] * C
    if IN_ONE_TAP:
        a_ptrs += offs_k[None, :]
    offs_n = first_n + tl.arange(0, G.n1)
    w_ptrs = w_ptr + offs_n[:, None] * K + offs_k[None, :]
    if G.n2 > 0:
        offs_n2 = first_n + G.n1 + tl.arange(0, G.n2)
        w2_ptrs = w_ptr + offs_n2[:, None] * K + offs_k[None, :]
    for step in range(steps):
        first_k = step * BLOCK_K
        if IN_ONE_TAP:
            # All taps of some channels, then of the next: the taps' rows overlap, so L1 has them.
            part = step // TAPS
            tapped = (step - part * TAPS) * C + part * BLOCK_K
            first_k = tl.where(first_k < TAPS * C, tapped, first_k)
            k = first_k
        else:
            k = first_k + offs_k[None, :]
        offset = offset_of(k, first_tap, pitch, plane_stride, C=C, PLANES=PLANES, G=G)
        # Zeros in the last step mask the numbers after K, even a NaN.
        mask_k = (first_k + offs_k < K)[None, :]
        a = load_block(a_ptrs + offset, mask_k, WHOLE=WHOLE, CACHE=".ca")
        w = load_weights(w_ptrs + first_k, mask_k, offs_n, N=N, BLOCK=BLOCK_N, WHOLE=WHOLE)
        acc = tl.dot(a, tl.trans(w), acc, input_precision=G.precision, out_dtype=acc.dtype)
        if G.n2 > 0:
            w = load_weights(w2_ptrs + first_k, mask_k, offs_n2, N=N, BLOCK=BLOCK_N, WHOLE=WHOLE)
            acc2 = tl.dot(a, tl.trans(w), acc2, input_precision=G.precision, out_dtype=acc.dtype)
    return acc, acc2, block, first_n, base, rows, is_pixel


@triton.jit
def load_block(ptrs, mask, WHOLE: tl.constexpr, CACHE: tl.constexpr):
    """A block of numbers, masked unless all of them exist."""
    if WHOLE:
        return tl.load(ptrs, cache_modifier=CACHE)
    else:
        return tl.load(ptrs, mask=mask, other=0.0, cache_modifier=CACHE)


@triton.jit
def load_weights(ptrs, mask_k, offs_n, N: tl.constexpr, BLOCK: tl.constexpr, WHOLE: tl.constexpr):
    """A block of weights (columns, K); WHOLE: all of its K numbers exist."""
    if N % BLOCK != 0:
        return load_block(ptrs, mask_k & (offs_n < N)[:, None], WHOLE=False, CACHE="")
    else:
        return load_block(ptrs, mask_k, WHOLE=WHOLE, CACHE="")


@triton.jit
def slices(acc, WIDTH: tl.constexpr):
    """The columns of acc in blocks of WIDTH; acc itself if it has at most WIDTH columns."""
    if acc.shape[1] <= WIDTH:
        return (acc,)
    else:
        halves = tl.reshape(acc, (acc.shape[0], 2, acc.shape[1] // 2))
        left, right = tl.split(tl.permute(halves, (0, 2, 1)))
        return slices(left, WIDTH) + slices(right, WIDTH)


@triton.jit
def parts_of(acc, acc2, WIDTH: tl.constexpr, G: tl.constexpr):
    """The columns of both accumulators in blocks of WIDTH; the last one may be narrower.

    An epilogue processes one block at a time: the temporaries of all blocks would spill.
    """
    parts = slices(acc, WIDTH)
    if G.n2 > 0:
        parts = parts + slices(acc2, WIDTH)
    return parts


@triton.jit
def weight_gradient_tile(
    e_ptr, g_ptr, partial_ptr, tile, split, pitch, plane_stride, blocks, steps,
    C: tl.constexpr, D: tl.constexpr, PART: tl.constexpr, PLANES: tl.constexpr, G: tl.constexpr,
):  # fmt: skip
    """A tile of partial (splits, K, D): sums over a split's rows of E[row + tap] x g[row].

    E has C channels per row and K = (taps + PLANES) C columns; g has D channels, and zeros in
    padding rows. A split has `steps` blocks of block_p rows; the last split has the remaining
    blocks. A tile has block_k columns: all taps of PART channels, then of the next, so that
    overlapping rows come from L1.
    """
    BLOCK_M: tl.constexpr = G.block_k
    TAPS: tl.constexpr = G.taps.kh * G.taps.kw
    K: tl.constexpr = (TAPS + PLANES) * C
    BLOCK_N: tl.constexpr = G.n1 + G.n2
    blocks_n: tl.constexpr = (D + BLOCK_N - 1) // BLOCK_N
    split = split.to(tl.int64)
    k = tile // blocks_n * BLOCK_M + tl.arange(0, BLOCK_M)
    mask_k = k < K
    if PART < C:
        part = k // (TAPS * PART)
        tap = k // PART - part * TAPS
        tapped = tap * C + part * PART + k % PART
        k = tl.where(k < TAPS * C, tapped, k)
    first_tap = G.taps.top * pitch + G.taps.left
    offset = offset_of(k, first_tap, pitch, plane_stride, C=C, PLANES=PLANES, G=G)
    offset -= first_tap * C  # of the first tap from the row; added to `first`, Triton 3.6 spills
    if PART < C:
        # The compiler does not see that the columns of a part are contiguous.
        offset = tl.max_contiguous(tl.multiple_of(offset, 8), 8)
    first_n = tile % blocks_n * BLOCK_N
    offs_n = first_n + tl.arange(0, G.n1)
    acc, acc2 = zeros(BLOCK_M, G)
    rows = tl.arange(0, G.block_p)
    first = split * steps * G.block_p
    e_ptrs = e_ptr + first * C + (rows[:, None] * C + offset[None, :])
    g_ptrs = g_ptr + first * D + (rows[:, None] * D + offs_n[None, :])
    if G.n2 > 0:
        offs_n2 = first_n + G.n1 + tl.arange(0, G.n2)
        g2_ptrs = g_ptr + first * D + (rows[:, None] * D + offs_n2[None, :])
    for _ in range(tl.minimum(steps, blocks - split * steps)):
        e = load_block(e_ptrs, mask_k[None, :], WHOLE=K % BLOCK_M == 0, CACHE=".ca")
        g = load_block(g_ptrs, (offs_n < D)[None, :], WHOLE=D % BLOCK_N == 0, CACHE="")
        acc = tl.dot(tl.trans(e), g, acc, input_precision=G.precision, out_dtype=G.acc)
        if G.n2 > 0:
            g = load_block(g2_ptrs, (offs_n2 < D)[None, :], WHOLE=D % BLOCK_N == 0, CACHE="")
            acc2 = tl.dot(tl.trans(e), g, acc2, input_precision=G.precision, out_dtype=G.acc)
            g2_ptrs += G.block_p * D
        e_ptrs += G.block_p * C
        g_ptrs += G.block_p * D
    partial_ptr += split * (K * D)
    parts = parts_of(acc, acc2, 32, G)
    for i in tl.static_range(len(parts)):
        offs = first_n + i * parts[0].shape[1] + tl.arange(0, parts[i].shape[1])
        mask = mask_k[:, None] & (offs < D)[None, :]
        tl.store(partial_ptr + (k[:, None] * D + offs[None, :]), parts[i], mask=mask)
