"""Dropout's decisions as bits: which elements of concat_elu(h) stay."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..philox import Stream
from .geometry import n_pixels
from .launch import launch

STREAM = tl.constexpr(int(Stream.DROPOUT))


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
    return ((word >> 9).to(tl.int32) >= keep_from).to(tl.uint32)


@triton.jit
def draw_kept(
    kept_ptr, seed_ptr, layer, keep_from, first_pixel, offs_p, mask_p, first_f,
    F: tl.constexpr, BLOCK_F: tl.constexpr,
):  # fmt: skip
    """Draw `kept` of channels first_f .. first_f + BLOCK_F - 1 of h for a block of pixels.

    Element i of dropout's input, counted in (B, H, W, 2F) order from pixel first_pixel of a larger
    batch on, has word i % 4 of Philox call i // 4. Where 4 divides F, the four words of a call
    serve four neighbouring channels.
    """
    seed = tl.load(seed_ptr)
    layer = tl.full((1, 1), layer, dtype=tl.int32)
    if F % 4 == 0:
        offs_q = first_f // 4 + tl.arange(0, BLOCK_F // 4)
        group = (first_pixel + offs_p[:, None]) * (F // 2) + offs_q[None, :]  # (P, BLOCK_F / 4)
        p0, p1, p2, p3 = philox_words(group, seed, layer)
        n0, n1, n2, n3 = philox_words(group + F // 4, seed, layer)
        # Four bytes, the first channel lowest, as one little-endian word.
        bits = is_kept(p0, keep_from) | is_kept(n0, keep_from) << 1
        bits |= is_kept(p1, keep_from) << 8 | is_kept(n1, keep_from) << 9
        bits |= is_kept(p2, keep_from) << 16 | is_kept(n2, keep_from) << 17
        bits |= is_kept(p3, keep_from) << 24 | is_kept(n3, keep_from) << 25
        tl.store(
            kept_ptr.to(tl.pointer_type(tl.uint32)) + offs_p[:, None] * (F // 4) + offs_q[None, :],
            bits,
            mask=mask_p[:, None] & (offs_q < F // 4)[None, :],
        )
    else:
        offs_f = first_f + tl.arange(0, BLOCK_F)
        element = (first_pixel + offs_p[:, None]) * (2 * F) + offs_f[None, :]  # (P, BLOCK_F)
        bits = is_kept(word_of(element, seed, layer), keep_from)
        bits |= is_kept(word_of(element + F, seed, layer), keep_from) << 1
        tl.store(
            kept_ptr + offs_p[:, None] * F + offs_f[None, :],
            bits.to(tl.uint8),
            mask=mask_p[:, None] & (offs_f < F)[None, :],
        )


@triton.jit
def word_of(element, seed, layer):
    """The random word of an element of dropout's input."""
    w0, w1, w2, w3 = philox_words(element // 4, seed, layer)
    which = element % 4
    return tl.where(which < 2, tl.where(which == 0, w0, w1), tl.where(which == 2, w2, w3))


@triton.jit
def kept_kernel(
    kept_ptr, seed_ptr, layer, keep_from, first_pixel, n_pixels,
    F: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_F: tl.constexpr,
):  # fmt: skip
    """Write kept (P, F) alone, for the backward."""
    pid = tl.program_id(0).to(tl.int64)
    blocks_f: tl.constexpr = (F + BLOCK_F - 1) // BLOCK_F
    offs_p = pid // blocks_f * BLOCK_P + tl.arange(0, BLOCK_P)
    draw_kept(
        kept_ptr, seed_ptr, layer, keep_from, first_pixel,
        offs_p=offs_p, mask_p=offs_p < n_pixels, first_f=pid % blocks_f * BLOCK_F,
        F=F, BLOCK_F=BLOCK_F,
    )  # fmt: skip


def draw(like: Tensor, seed: Tensor, layer: int, keep_from: int, first_image: int = 0) -> Tensor:
    """`kept` of h, (B, H, W, F) uint8, as of images first_image and on of a larger batch."""
    batch, f, rows, cols = like.shape
    kept = torch.empty((batch, rows, cols, f), dtype=torch.uint8, device=like.device)
    block_p, block_f = 32, 32
    launch(
        kept_kernel, (triton.cdiv(n_pixels(like), block_p) * triton.cdiv(f, block_f),),
        like.device,
        kept_ptr=kept, seed_ptr=seed, layer=layer, keep_from=keep_from,
        first_pixel=first_image * rows * cols, n_pixels=n_pixels(like),
        F=f, BLOCK_P=block_p, BLOCK_F=block_f, num_warps=4,
    )  # fmt: skip
    return kept
