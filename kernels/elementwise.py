"""Device functions of single elements: elu and its slopes, the gate, dropout."""

import triton
import triton.language as tl

from ..philox import Stream

STREAM = tl.constexpr(int(Stream.DROPOUT))


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
def deinterleave(v):
    """(P, 2N) -> the even and the odd columns, (P, N) each."""
    return tl.split(tl.reshape(v, (v.shape[0], v.shape[1] // 2, 2)))


@triton.jit
def drop(positive, negative, kept, SCALE: tl.constexpr):
    """Dropout of elu(h) and elu(-h): bits 0 and 1 of `kept` say which of the two stay."""
    return (
        tl.where((kept & 1) != 0, positive * SCALE, 0.0),
        tl.where((kept & 2) != 0, negative * SCALE, 0.0),
    )


@triton.jit
def gate_gradients(dy, a, g, mask):
    """The gradients of A and G of y = x + A sigmoid(G); 0 outside of the mask."""
    gate = 1 / (1 + tl.exp(-g))
    da = tl.where(mask, dy * gate, 0.0)
    return da, tl.where(mask, da * a * (1 - gate), 0.0)


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
