"""Floating-point operations as IEEE 754 and the PTX ISA define them, on numpy arrays.

Results of float32 and narrower are computed in float64, rounded to odd where inexact, and then
rounded once to the type that is asked for: to odd keeps what the second rounding needs to know
(Boldo and Melquiond, "Emulation of FMA and correctly rounded sums", 2008).
"""

from __future__ import annotations

import numpy as np

_TINY = np.float64(2.0**-126)
_SPLIT = np.float64(2**27 + 1)


def to_odd(total: np.ndarray, error: np.ndarray) -> np.ndarray:
    """total + error, |error| at most half an ulp of total, rounded to odd."""
    bits = total.view(np.int64)
    inexact = (error != 0) & ((bits & 1) == 0) & np.isfinite(total)
    if not inexact.any():
        return total
    outward = (error > 0) == ~np.signbit(total)
    return np.where(inexact, bits + np.where(outward, 1, -1), bits).view(np.float64)


def two_sum(a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    total = a + b
    other = total - a
    error = (a - (total - other)) + (b - other)
    return total, np.where(np.isfinite(total), error, 0.0)


def two_product(a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    product = a * b
    high_a, high_b = (x * _SPLIT - (x * _SPLIT - x) for x in (a, b))
    low_a, low_b = a - high_a, b - high_b
    error = ((high_a * high_b - product) + high_a * low_b + low_a * high_b) + low_a * low_b
    return product, np.where(np.isfinite(error), error, 0.0)


def fma64(a: np.ndarray, b: np.ndarray, c: np.ndarray) -> np.ndarray:
    """a b + c in float64 with one rounding, away from the ends of the range of exponents."""
    high, low = two_product(a, b)
    low_high, low_low = two_sum(c, low)
    total, rest = two_sum(high, low_high)
    exact = total + to_odd(*two_sum(rest, low_low))
    return np.where(np.isfinite(total), exact, total)


def round_to(x: np.ndarray, type_: str, mode: str = "rn") -> np.ndarray:
    """Float64 (rounded to odd) as f32, f16, bf16 or tf32; the last two as their bits.

    mode: rn to nearest even, rz to zero, rm down, rp up, rna to nearest, ties away from zero.
    """
    if type_ == "f32":
        return _directed(x, x.astype(np.float32), mode)
    if type_ == "f16":
        return _directed(x, x.astype(np.float16), mode)
    if type_ in ("bf16", "tf32"):
        # To odd once more, in float32: 24 bits are enough for the 8 or 11 that are kept.
        single = x.astype(np.float32)
        odd = _float32_to_odd(x, single).view(np.uint32)
        kept = _drop(odd, 16 if type_ == "bf16" else 13, mode)
        kept = np.where(np.isnan(x), np.uint32(0x7FFF0000), kept)
        return (kept >> np.uint32(16)).astype(np.uint16) if type_ == "bf16" else kept
    raise ValueError(f"rounding to {type_}")


def _directed(x: np.ndarray, nearest: np.ndarray, mode: str) -> np.ndarray:
    if mode == "rn":
        return nearest
    above, below = nearest > x, nearest < x
    infinity = nearest.dtype.type(np.inf)
    down = above if mode == "rm" else above & (x > 0) if mode == "rz" else np.zeros_like(above)
    up = below if mode == "rp" else below & (x < 0) if mode == "rz" else np.zeros_like(above)
    result = np.where(down, np.nextafter(nearest, -infinity), nearest)
    return np.where(up, np.nextafter(nearest, infinity), result)


def _float32_to_odd(x: np.ndarray, single: np.ndarray) -> np.ndarray:
    toward_zero = _directed(x, single, "rz")
    inexact = (toward_zero != x) & ~np.isnan(x)
    bits = toward_zero.view(np.uint32)
    return np.where(inexact, bits | np.uint32(1), bits).view(np.float32)


def _drop(bits: np.ndarray, count: int, mode: str) -> np.ndarray:
    """Round the low bits of float32 away."""
    half, ones = np.uint32(1 << (count - 1)), np.uint32((1 << count) - 1)
    negative = (bits >> np.uint32(31)) != 0
    if mode == "rn":
        add = half - np.uint32(1) + (bits >> np.uint32(count) & np.uint32(1))
    elif mode == "rna":
        add = np.full_like(bits, half)
    elif mode == "rz":
        add = np.zeros_like(bits)
    else:
        add = np.where(negative == (mode == "rm"), ones, np.uint32(0))
    return (bits + add) & ~ones


def odd_sum(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return to_odd(*two_sum(a, b))


def fma32(a: np.ndarray, b: np.ndarray, c: np.ndarray) -> np.ndarray:
    """a b + c of float32 to nearest. The product is exact in float64; the sum of most is far from
    the middle between two float32, and rounding twice is then rounding once."""
    product = np.multiply(a, b, dtype=np.float64)
    total = product + c
    middle = (total.view(np.uint64) & np.uint64(0x1FFFFFFF)) == np.uint64(0x10000000)
    if middle.any() or ((np.abs(total) < _TINY) & (total != 0)).any():
        return odd_sum(product, c.astype(np.float64)).astype(np.float32)
    return total.astype(np.float32)


def fused(a: np.ndarray, b: np.ndarray, c: np.ndarray, type_: str, mode: str) -> np.ndarray:
    """a b + c of float64 arrays that hold values of type_, rounded once."""
    return round_to(odd_sum(a * b, c), type_, mode)


def from_bf16(bits: np.ndarray) -> np.ndarray:
    """As float32."""
    return (bits.astype(np.uint32) << np.uint32(16)).view(np.float32)


def flushed(x: np.ndarray) -> np.ndarray:
    """Subnormal float32 as zeros of their sign: the modifier ftz."""
    return np.where(np.abs(x) < np.float32(_TINY), np.copysign(np.float32(0), x), x)
