"""What the convolutions multiply, written once: images as rows of a matmul (`geometry.Rows`).

For a gated resnet concat_elu(x), F channels of elu(x) and then F of elu(-x); of h with dropout. For
the other convolutions the patches under their taps, side by side, and the reverse, their sum.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .dropout import draw_kept
from .elementwise import drop, elu_pair
from .geometry import Rows, Taps, cdiv, empty_channels_last, planes_of
from .launch import launch
from .matmul import place_of


@triton.jit
def expand_block(
    image_ptr, e_ptrs, pixel, is_pixel, mask_a, first_c, first_f, kept,
    C: tl.constexpr, F: tl.constexpr, DROPOUT: tl.constexpr, SCALE: tl.constexpr,
    BLOCK_F: tl.constexpr,
):  # fmt: skip
    """Channels first_c + first_f .. of an image of C channels, to columns first_f .. of its plane.

    Zeros in rows that are no pixels and where the image has no such channel.
    """
    offs_f = first_f + tl.arange(0, BLOCK_F)
    mask_f = (offs_f < F) & (first_c + offs_f < C)
    v = tl.load(
        image_ptr + pixel[:, None] * C + (first_c + offs_f)[None, :],
        mask=is_pixel[:, None] & mask_f[None, :],
        other=0.0,
    )
    positive, negative = elu_pair(v)
    if DROPOUT:
        positive, negative = drop(positive, negative, kept, SCALE)
    mask = mask_a[:, None] & (offs_f < F)[None, :]
    ptrs = e_ptrs[:, None] + offs_f[None, :]
    tl.store(ptrs, positive.to(v.dtype), mask=mask)
    tl.store(ptrs + F, negative.to(v.dtype), mask=mask)


@triton.jit
def clear_block(ptr, offs_a, mask, first, C: tl.constexpr, BLOCK: tl.constexpr):
    """Zeros to columns first .. of rows of C."""
    offs = first + tl.arange(0, BLOCK)
    zero = tl.zeros((offs_a.shape[0], BLOCK), dtype=ptr.dtype.element_ty)
    ptrs = ptr + offs_a.to(tl.int64)[:, None] * C + offs[None, :]
    tl.store(ptrs, zero, mask=mask[:, None] & (offs < C)[None, :])


@triton.jit
def expand_kernel(
    x_ptr, a0_ptr, a1_ptr, h_ptr, e_ptr, kept_ptr, d_gates_ptr, dh_ptr, seed_ptr, layer, keep_from,
    first_pixel, margin, total, batch, height, width,
    F: tl.constexpr, S0: tl.constexpr, S1: tl.constexpr, X: tl.constexpr, H: tl.constexpr,
    DROPOUT: tl.constexpr, BACKWARD: tl.constexpr, SCALE: tl.constexpr,
    KH: tl.constexpr, KW: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_F: tl.constexpr,
):  # fmt: skip
    """e (planes, total, 2F), margins too: with X of x and of the skips, then with H of h.

    A skip of S channels has as many planes as it takes, F channels each. With DROPOUT what is made
    of h is dropped, as from pixel first_pixel of a larger batch on. BACKWARD: `kept` (total, F)
    says what stayed, and the margins of d_gates (total, 2F) and dh (total, F), which the kernels
    that fill these leave alone, become zeros.
    """
    planes_0: tl.constexpr = (S0 + F - 1) // F
    planes_1: tl.constexpr = (S1 + F - 1) // F
    planes_x: tl.constexpr = 1 + planes_0 + planes_1 if X else 0
    chunks: tl.constexpr = (F + BLOCK_F - 1) // BLOCK_F
    pid = tl.program_id(0)
    plane = tl.program_id(1)
    first_f = pid % chunks * BLOCK_F
    offs_a = pid // chunks * BLOCK_P + tl.arange(0, BLOCK_P)
    mask_a = offs_a < total
    base, place, is_pixel = place_of(
        pid // chunks * BLOCK_P - margin, batch, height, width, KH=KH, KW=KW, BLOCK=BLOCK_P
    )
    pixel = base + place
    e_ptrs = e_ptr + (plane.to(tl.int64) * total + offs_a) * (2 * F)
    if X:
        if plane == 0:
            expand_block(
                x_ptr, e_ptrs, pixel, is_pixel, mask_a, 0, first_f, None,
                C=F, F=F, DROPOUT=False, SCALE=SCALE, BLOCK_F=BLOCK_F,
            )  # fmt: skip
        if S0 > 0:
            first_c = (plane - 1) * F
            if (plane > 0) & (plane <= planes_0):
                expand_block(
                    a0_ptr, e_ptrs, pixel, is_pixel, mask_a, first_c, first_f, None,
                    C=S0, F=F, DROPOUT=False, SCALE=SCALE, BLOCK_F=BLOCK_F,
                )  # fmt: skip
        if S1 > 0:
            first_c = (plane - 1 - planes_0) * F
            if (plane > planes_0) & (plane < planes_x):
                expand_block(
                    a1_ptr, e_ptrs, pixel, is_pixel, mask_a, first_c, first_f, None,
                    C=S1, F=F, DROPOUT=False, SCALE=SCALE, BLOCK_F=BLOCK_F,
                )  # fmt: skip
    if H:
        of_h = plane == planes_x
        if of_h:
            kept = None
            if DROPOUT:
                kept = draw_kept(
                    seed_ptr, layer, keep_from, first_pixel + pixel, first_f, F=F, BLOCK_F=BLOCK_F
                )
                if BACKWARD:
                    offs_f = first_f + tl.arange(0, BLOCK_F)
                    tl.store(
                        kept_ptr + offs_a.to(tl.int64)[:, None] * F + offs_f[None, :],
                        kept,
                        mask=mask_a[:, None] & (offs_f < F)[None, :],
                    )
            expand_block(
                h_ptr, e_ptrs, pixel, is_pixel, mask_a, 0, first_f, kept,
                C=F, F=F, DROPOUT=DROPOUT, SCALE=SCALE, BLOCK_F=BLOCK_F,
            )  # fmt: skip
            if BACKWARD:
                outside = mask_a & ((offs_a < margin) | (offs_a >= total - margin))
                clear_block(d_gates_ptr, offs_a, outside, 2 * first_f, C=2 * F, BLOCK=2 * BLOCK_F)
                clear_block(dh_ptr, offs_a, outside, first_f, C=F, BLOCK=BLOCK_F)


def expand(
    rows: Rows,
    x: Tensor | None,
    skips: list[Tensor],
    h: Tensor | None,
    seed: Tensor | None = None,
    layer: int = 0,
    dropout: tuple[int, float] = (0, 1.0),
    first_image: int = 0,
    *,
    d_gates: Tensor | None = None,
    dh: Tensor | None = None,
) -> tuple[Tensor, Tensor | None]:
    """concat_elu of x and its skips, and (seed) dropout of concat_elu(h), each of them if given.

    Returns (planes, total + margin, 2F) from row 0 on, with margins on both sides, x's plane first
    and h's last. Images are channels_last. dropout: the least word >> 9 that is kept, and what is
    kept is multiplied by. first_image: where they begin in a larger batch whose dropout they share.
    For the backward there is room for the gradients of the gates and of h; its margins are written,
    and the bits of dropout, (1, total + margin, F), are returned too.
    """
    image = h if x is None else x
    if image is None:
        raise ValueError("there must be x or h")
    f = image.shape[1]
    channels = [skip.shape[1] for skip in skips]
    planes = (0 if x is None else 1 + planes_of(channels, f)) + (h is not None)
    room = rows.empty(image, 2 * f, planes)
    total = room.shape[1]
    kept = None
    if dh is not None and seed is not None:
        kept = torch.empty((1, total, f), dtype=torch.uint8, device=image.device)
    first, second = (*skips, image, image)[:2]
    s0, s1 = (*channels, 0, 0)[:2]
    block_f = 32 if f % 32 == 0 else min(64, max(16, triton.next_power_of_2(f)))
    launch(
        expand_kernel, (cdiv(total, 32) * cdiv(f, block_f), planes), image.device,
        x_ptr=image, a0_ptr=first, a1_ptr=second, h_ptr=image if h is None else h, e_ptr=room,
        kept_ptr=image if kept is None else kept,
        d_gates_ptr=image if d_gates is None else d_gates, dh_ptr=image if dh is None else dh,
        seed_ptr=image if seed is None else seed,
        layer=layer, keep_from=dropout[0],
        first_pixel=first_image * rows.height * rows.width,
        margin=rows.margin, total=total, **rows.numbers(),
        F=f, S0=s0, S1=s1, X=x is not None, H=h is not None,
        DROPOUT=h is not None and seed is not None, BACKWARD=dh is not None, SCALE=dropout[1],
        KH=rows.kh, KW=rows.kw, BLOCK_P=32, BLOCK_F=block_f, num_warps=4,
    )  # fmt: skip
    return rows.first(room), None if kept is None else rows.first(kept)


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
    launch(
        patches_kernel, (rows.total // 32, cdiv(k, block_k)), image.device,
        image_ptr=image, out_ptr=out, count=rows.total,
        batch=image.shape[0], height=image.shape[2], width=image.shape[3],
        height_out=rows.height, width_out=rows.width,
        C=channels, STRIDE=taps.stride, BLOCK_P=32, BLOCK_K=block_k, num_warps=4,
        **taps.constants(),
    )  # fmt: skip
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
    launch(
        fold_kernel, (cdiv(count, 32), cdiv(channels, block_c)), like.device,
        patches_ptr=given, bias_ptr=given if bias is None else bias, y_ptr=y, n_pixels=count,
        height=size[0], width=size[1], height_in=rows.height, width_in=rows.width,
        C=channels, STRIDE=taps.stride, BIAS=bias is not None, BLOCK_P=32, BLOCK_C=block_c,
        num_warps=4, **taps.constants(),
    )  # fmt: skip
    return y
