"""Dropout's decisions as bits: which elements of concat_elu(h) stay."""

import triton
import triton.language as tl

from ..philox import Stream

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
    return ((word >> 9).to(tl.int32) >= keep_from).to(tl.uint8)


@triton.jit
def draw_kept(seed_ptr, layer, keep_from, pixel, first_f, F: tl.constexpr, BLOCK_F: tl.constexpr):
    """Bits 0 and 1 say whether elu(h) and elu(-h) stay: (P, BLOCK_F) uint8, of channels first_f ...

    Element i of dropout's input, counted in (B, H, W, 2F) order, has word i % 4 of Philox call
    i // 4. Where 4 divides F, the four words of a call serve four neighbouring channels.
    pixel: (P,) int64, in (B, H, W) order of the whole batch.
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
