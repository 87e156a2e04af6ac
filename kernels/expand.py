"""The left operands of a gated resnet's matmuls: images as rows (`geometry.PaddedImages`).

concat_elu(x) is F channels of elu(x), then F of elu(-x). Dropout applies to that of h only.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from dsmooth.philox import Stream

from .geometry import Dropout, PaddedImages, Tensors, cdiv
from .launch import launch

STREAM = tl.constexpr(int(Stream.DROPOUT))
BLOCK_P = tl.constexpr(32)  # rows of a program of operands_kernel
BLOCK_F = tl.constexpr(32)  # and channels


@triton.jit
def widen(v):
    """Cast v to float32, or keep float64: the dtype of every sum and elementwise function."""
    return v if v.dtype == tl.float64 else v.to(tl.float32)


@triton.jit
def elu_pair(v):
    """elu(v) and elu(-v) in at least float32, from one exponential."""
    x = widen(v)
    a = tl.abs(x)
    m = tl.exp(-a) - 1
    if v.dtype == tl.float32:
        # Near 0 the difference cancels; below 0.3 six terms of the series have an error of 2e-7.
        # Shorter dtypes round the result more coarsely, and float64 has digits to spare.
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
def deinterleave(v):
    """(P, 2N) -> the even and the odd columns, (P, N) each."""
    return tl.split(tl.reshape(v, (v.shape[0], v.shape[1] // 2, 2)))


@triton.jit
def drop(positive, negative, kept, SCALE: tl.constexpr):
    """Dropout of elu(h) and elu(-h): bits 0 and 1 of `kept` are set where they are kept."""
    return (
        tl.where((kept & 1) != 0, positive * SCALE, 0.0),
        tl.where((kept & 2) != 0, negative * SCALE, 0.0),
    )


@triton.jit
def philox_words(group, seed, layer):
    """The four words of counter (group low, group high, layer, Stream.DROPOUT)."""
    low = group.to(tl.uint32)
    zero = low * 0
    high = (group >> 32).to(tl.uint32)
    return tl.philox(seed, low, high, zero + layer.to(tl.uint32), zero + STREAM)


@triton.jit
def is_kept(word, keep_from):
    """1 where the word keeps its element, else 0."""
    return ((word >> 9).to(tl.int32) >= keep_from).to(tl.uint8)


@triton.jit
def draw_kept(seed_ptr, layer, keep_from, pixel, first_f, F: tl.constexpr):
    """Dropout bits of channels first_f ..: (P, BLOCK_F) uint8, bit 0 for elu(h), bit 1 for elu(-h).

    Element i, in (B, H, W, 2F) order of the whole batch, has word i % 4 of Philox call i // 4.
    Where 4 divides F, a call serves four neighbouring channels. pixel: (P,) int64.
    """
    seed = tl.load(seed_ptr)
    layer = tl.full((1, 1), layer, dtype=tl.int32)
    if F % 4 == 0:
        offs_q = first_f // 4 + tl.arange(0, BLOCK_F // 4)
        group = pixel[:, None] * (F // 2) + offs_q[None, :]  # (P, BLOCK_F / 4)
        p0, p1, p2, p3 = philox_words(group, seed, layer)
        n0, n1, n2, n3 = philox_words(group + F // 4, seed, layer)
        b0 = is_kept(p0, keep_from) | is_kept(n0, keep_from) << 1
        b1 = is_kept(p1, keep_from) | is_kept(n1, keep_from) << 1
        b2 = is_kept(p2, keep_from) | is_kept(n2, keep_from) << 1
        b3 = is_kept(p3, keep_from) | is_kept(n3, keep_from) << 1
        bits = tl.join(tl.join(b0, b2), tl.join(b1, b3))  # (P, BLOCK_F / 4, 2, 2)
        kept = tl.reshape(bits, (pixel.shape[0], BLOCK_F))
    else:
        element = pixel[:, None] * (2 * F) + (first_f + tl.arange(0, BLOCK_F))[None, :]
        kept = is_kept(word_of(element, seed, layer), keep_from)
        kept |= is_kept(word_of(element + F, seed, layer), keep_from) << 1
    return kept


@triton.jit
def word_of(element, seed, layer):
    """The random word of an element of dropout's input."""
    w0, w1, w2, w3 = philox_words(element // 4, seed, layer)
    which = element % 4
    return tl.where(which < 2, tl.where(which == 0, w0, w1), tl.where(which == 2, w2, w3))


@triton.jit
def pixels_of_rows(first, size, ABOVE: tl.constexpr, BEFORE: tl.constexpr):
    """The pixels (in B, H, W order) of BLOCK_P rows starting at `first`, and which rows are pixels.

    size: (batch, height, width). Returns (base int64, int32 offsets from it (BLOCK_P,), mask
    (BLOCK_P,)); `matmul.rows_of_pixels` says why offsets are 32-bit.
    """
    batch, height, width = size
    s = first.to(tl.int32) + tl.arange(0, BLOCK_P)
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
def expand_block(
    image_ptr, e_ptrs, pixel, is_pixel, mask_a, first_c, first_f, kept,
    C: tl.constexpr, F: tl.constexpr, SCALE: tl.constexpr,
):  # fmt: skip
    """Write channels first_c + first_f .. of an image of C channels to columns first_f .. of its
    plane. Padding rows and channels beyond C get zeros. kept: dropout bits, or None."""
    offs_f = first_f + tl.arange(0, BLOCK_F)
    mask_f = (offs_f < F) & (first_c + offs_f < C)
    v = tl.load(
        image_ptr + pixel[:, None] * C + (first_c + offs_f)[None, :],
        mask=is_pixel[:, None] & mask_f[None, :],
        other=0.0,
    )
    positive, negative = elu_pair(v)
    if kept is not None:
        positive, negative = drop(positive, negative, kept, SCALE)
    mask = mask_a[:, None] & (offs_f < F)[None, :]
    ptrs = e_ptrs[:, None] + offs_f[None, :]
    tl.store(ptrs, positive.to(v.dtype), mask=mask)
    tl.store(ptrs + F, negative.to(v.dtype), mask=mask)


@triton.jit
def clear_block(ptr, offs_a, mask, first, C: tl.constexpr, BLOCK: tl.constexpr):
    """Write zeros to columns first .. of rows of C."""
    offs = first + tl.arange(0, BLOCK)
    zero = tl.zeros((offs_a.shape[0], BLOCK), dtype=ptr.dtype.element_ty)
    ptrs = ptr + offs_a.to(tl.int64)[:, None] * C + offs[None, :]
    tl.store(ptrs, zero, mask=mask[:, None] & (offs < C)[None, :])


@triton.jit
def store_gate_gradients(
    gates_ptr, dy_ptr, d_gates_ptr, sums_ptr, pixel, is_pixel, offs_a, mask_a, block, first_f,
    F: tl.constexpr,
):  # fmt: skip
    """Write channels first_f .. of the gradients of A and G (rows of 2F), y = x + A sigmoid(G),
    and their block sums."""
    offs_f = first_f + tl.arange(0, BLOCK_F)
    mask_f = offs_f < F
    mask = is_pixel[:, None] & mask_f[None, :]
    dy = widen(tl.load(dy_ptr + pixel[:, None] * F + offs_f[None, :], mask=mask, other=0.0))
    gates = gates_ptr + pixel[:, None] * (2 * F) + offs_f[None, :]
    a = widen(tl.load(gates, mask=mask, other=0.0))
    g = widen(tl.load(gates + F, mask=mask, other=0.0))
    gate = 1 / (1 + tl.exp(-g))
    da = tl.where(mask, dy * gate, 0.0)
    dg = tl.where(mask, da * a * (1 - gate), 0.0)
    out = d_gates_ptr + offs_a.to(tl.int64)[:, None] * (2 * F) + offs_f[None, :]
    rows = mask_a[:, None] & mask_f[None, :]
    tl.store(out, da.to(d_gates_ptr.dtype.element_ty), mask=rows)
    tl.store(out + F, dg.to(d_gates_ptr.dtype.element_ty), mask=rows)
    sums = sums_ptr + block.to(tl.int64) * (2 * F) + offs_f
    tl.store(sums, tl.sum(da, axis=0), mask=mask_f)
    tl.store(sums + F, tl.sum(dg, axis=0), mask=mask_f)


@triton.jit
def operands_kernel(
    x, h_ptr, e_ptr, kept_ptr, gates_ptr, dy_ptr, d_gates_ptr, dh_ptr, sums_ptr,
    seed_ptr, layer, keep_from, first_pixel, margin, total, plane_stride, size,
    CHANNELS: tl.constexpr, SCALE: tl.constexpr, ABOVE: tl.constexpr, BEFORE: tl.constexpr,
):  # fmt: skip
    """Write all rows that the matmuls of a gated resnet read. Grid: (rows, planes). The planes:

        x = (x, skip, skip_2), of CHANNELS, in planes of F channels; none if x is None
        h: the dropout bits. Forward: also zeros around the rows, which hidden_kernel writes.
            Backward: E(h), and the padding of dh, rows of F
        only in the backward, where dy_ptr is not None: the gradients of A and G, d_gates, rows of
            2F, and sums (blocks, 2F)

    e: planes of rows of 2F; kept: rows of F, or None. margin: rows before the first; total: rows
    from the first. first_pixel: index in the larger batch.
    """
    F: tl.constexpr = CHANNELS[0]
    chunks: tl.constexpr = (F + BLOCK_F - 1) // BLOCK_F
    first_f = tl.program_id(0) % chunks * BLOCK_F
    block = tl.program_id(0) // chunks
    plane = tl.program_id(1)
    first = block * BLOCK_P - margin
    offs_a = first + tl.arange(0, BLOCK_P)
    mask_a = offs_a < total
    base, offset, is_pixel = pixels_of_rows(first, size, ABOVE=ABOVE, BEFORE=BEFORE)
    pixel = base + offset
    outside = mask_a & ~is_pixel
    e_plane = e_ptr + plane.to(tl.int64) * plane_stride
    e_ptrs = e_plane + offs_a.to(tl.int64) * (2 * F)
    if x is not None:
        for i in tl.static_range(3):
            if CHANNELS[i] > 0:  # noqa: SIM102 - a constexpr: if false, the body is not compiled
                if (plane >= 0) & (plane * F < CHANNELS[i]):
                    expand_block(
                        x[i], e_ptrs, pixel, is_pixel, mask_a, plane * F, first_f, None,
                        C=CHANNELS[i], F=F, SCALE=1.0,
                    )  # fmt: skip
            plane -= (CHANNELS[i] + F - 1) // F
    if plane == 0:
        kept = None
        if kept_ptr is not None:
            kept = draw_kept(seed_ptr, layer, keep_from, first_pixel + pixel, first_f, F=F)
            offs_f = first_f + tl.arange(0, BLOCK_F)
            tl.store(
                kept_ptr + offs_a.to(tl.int64)[:, None] * F + offs_f[None, :],
                kept,
                mask=mask_a[:, None] & (offs_f < F)[None, :],
            )
        if dy_ptr is not None:
            expand_block(
                h_ptr, e_ptrs, pixel, is_pixel, mask_a, 0, first_f, kept,
                C=F, F=F, SCALE=SCALE,
            )  # fmt: skip
            clear_block(dh_ptr, offs_a, outside, first_f, C=F, BLOCK=BLOCK_F)
        else:
            clear_block(e_plane, offs_a, outside, 2 * first_f, C=2 * F, BLOCK=2 * BLOCK_F)
    if dy_ptr is not None:  # noqa: SIM102 - as above
        if plane > 0:
            store_gate_gradients(
                gates_ptr, dy_ptr, d_gates_ptr, sums_ptr, pixel, is_pixel, offs_a, mask_a, block,
                first_f, F=F,
            )  # fmt: skip


def blocks_of(rows: PaddedImages) -> int:
    """Number of blocks of BLOCK_P rows."""
    return cdiv(rows.length, BLOCK_P.value)


def expand(
    tensors: Tensors,
    rows: PaddedImages,
    h: Tensor,
    dropout: Dropout,
    *,
    inputs: bool = True,
    **gradients: Tensor,
) -> tuple[Tensor, Tensor | None]:
    """concat_elu of x and the skips (`inputs`), then of h with dropout; and the dropout bits, or
    None.

    Returns rows (`PaddedImages.empty`): planes of 2F, x's plane first and h's last, and bits, one
    plane of F. The forward writes only the margins of h's plane. The backward gives gates_ptr
    (B, 2F, H, W) and dy_ptr, and it also writes the margins of dh_ptr, all of d_gates_ptr, and its
    sums over each BLOCK_P rows, sums_ptr (blocks, 2F).
    """
    x, f = tensors.images[0], tensors.channels[0]
    planes = 1 + (1 + tensors.planes) * inputs
    expanded = rows.empty(x, 2 * f, planes=planes)
    kept = rows.empty(x, f, dtype=torch.uint8) if dropout.seed is not None else None
    backward = ("gates_ptr", "dy_ptr", "d_gates_ptr", "dh_ptr", "sums_ptr")
    launch(
        operands_kernel,
        (blocks_of(rows) * cdiv(f, BLOCK_F.value), planes + bool(gradients)), x.device,
        x=(*tensors.images, x, x)[:3] if inputs else None, h_ptr=h, e_ptr=expanded,
        kept_ptr=kept, seed_ptr=dropout.seed, **dict.fromkeys(backward) | gradients,
        layer=dropout.layer, keep_from=dropout.keep_from,
        first_pixel=dropout.first_image * rows.height * rows.width, margin=rows.margin,
        total=rows.total + rows.margin, plane_stride=expanded.stride(0), size=rows.size,
        CHANNELS=(*tensors.channels, 0, 0)[:3], SCALE=dropout.scale,
        ABOVE=rows.above, BEFORE=rows.before,
        num_warps=4,
    )  # fmt: skip
    return expanded, kept
