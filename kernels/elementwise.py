"""Device functions of single elements: elu and its slopes, dropout's factors, pairs of columns."""

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
def halves(x):
    """The left and the right columns of x (P, N), each (P, N / 2)."""
    parts = tl.reshape(x, (x.shape[0], 2, x.shape[1] // 2))
    return tl.split(tl.permute(parts, (0, 2, 1)))


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
