"""The player's floating point against exact rational arithmetic."""

from __future__ import annotations

import math
import struct
from fractions import Fraction

import numpy as np
import pytest

from tests.ptx.evaluate import evaluate

# Bits of the significand, with the hidden one, and the least exponent of a normal number.
FORMATS = {"f16": (11, -14), "bf16": (8, -126), "tf32": (11, -126), "f32": (24, -126),
           "f64": (53, -1022)}  # fmt: skip
LARGEST = {"f16": 15, "bf16": 127, "tf32": 127, "f32": 127, "f64": 1023}
pytestmark = pytest.mark.full
COUNT = 256


def rounded(x: Fraction, type_: str, mode: str) -> float:
    """x to nearest even (rn), to zero, down, up, or to nearest with ties away (rna)."""
    if x == 0:
        return 0.0
    bits, least = FORMATS[type_]
    exponent = max(math.floor(math.log2(abs(x))) + 1, least)
    for e in (exponent - 2, exponent - 1, exponent):
        if e >= least and Fraction(2) ** e <= abs(x) < Fraction(2) ** (e + 1):
            break
    else:
        e = least
    step = Fraction(2) ** (e - bits + 1)
    down = math.floor(x / step)
    rest = x / step - down
    up = {
        "rz": rest > 0 and x < 0, "rm": False, "rp": rest > 0,
        "rn": rest > Fraction(1, 2) or (rest == Fraction(1, 2) and down % 2 == 1),
        "rna": rest > Fraction(1, 2) or (rest == Fraction(1, 2) and x > 0),
    }[mode]  # fmt: skip
    result = (down + up) * step
    if abs(result) >= Fraction(2) ** (LARGEST[type_] + 1):
        return math.copysign(math.inf, x)  # rn; other modes are not asked so far out
    return math.copysign(float(result), x)


def as_bits(values: list[float], type_: str) -> np.ndarray:
    """Values of a narrow type as what its registers hold."""
    single = np.array(values, np.float32)
    if type_ == "bf16":
        return (single.view(np.uint32) >> 16).astype(np.uint16)
    if type_ == "tf32":
        return single.view(np.uint32)
    return np.array(values, {"f16": "f2", "f32": "f4", "f64": "f8"}[type_])


def draw(type_: str, count: int, seed: int, spread: int = 6) -> list[float]:
    """Values of a type: of many magnitudes, with few and with all bits set, and special ones."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal(count) * 2.0 ** rng.integers(-spread, spread, count)
    x[: count // 4] = rng.integers(-9, 9, count // 4) / 4
    return [rounded(Fraction(v), type_, "rn") for v in x.tolist()]


def check(got: np.ndarray, expected: list[float], type_: str) -> None:
    np.testing.assert_array_equal(got.view(f"u{got.itemsize}"),
                                  as_bits(expected, type_).view(f"u{got.itemsize}"))  # fmt: skip


FUSED = [*(("f32", mode) for mode in ("rn", "rz", "rm", "rp")),
         *((type_, "rn") for type_ in ("f64", "f16", "bf16"))]  # fmt: skip


@pytest.mark.parametrize(("type_", "mode"), FUSED)
def test_fma_is_rounded_once(type_: str, mode: str) -> None:
    a, b, c = (draw(type_, COUNT, seed) for seed in (1, 2, 3))
    # Sums that lie in or beside the middle of two values, where rounding twice goes wrong.
    step = 2.0 ** (1 - FORMATS[type_][0])
    tiny = 2.0**-14 if type_ == "f16" else 2.0**-60
    a[:4], b[:4], c[:4] = [1 + step] * 4, [step / 2, step / 2, tiny, -tiny], [1, 1, 1, 1 + step]
    source = [(type_, as_bits(v, type_).tolist() if type_ == "bf16" else v) for v in (a, b, c)]
    (got,) = evaluate(f"fma.{mode}.{type_} %d0, %s0, %s1, %s2;", [type_], source)
    exact = [Fraction(x) * Fraction(y) + Fraction(z) for x, y, z in zip(a, b, c, strict=True)]
    expected = [rounded(v, type_, mode) for v in exact]
    same_zero = [i for i, v in enumerate(exact) if v != 0]
    check(got[same_zero], [expected[i] for i in same_zero], type_)


@pytest.mark.parametrize("mode", ["rn", "rz", "rm", "rp"])
@pytest.mark.parametrize("name", ["add", "sub", "mul"])
def test_float32_in_every_mode(name: str, mode: str) -> None:
    a, b = (draw("f32", COUNT, seed, 20) for seed in (4, 5))
    (got,) = evaluate(f"{name}.{mode}.f32 %d0, %s0, %s1;", ["f32"], [("f32", a), ("f32", b)])
    operation = {"add": Fraction.__add__, "sub": Fraction.__sub__, "mul": Fraction.__mul__}[name]
    exact = [operation(Fraction(x), Fraction(y)) for x, y in zip(a, b, strict=True)]
    kept = [i for i, v in enumerate(exact) if v != 0]
    check(got[kept], [rounded(exact[i], "f32", mode) for i in kept], "f32")


@pytest.mark.parametrize(
    ("target", "mode"),
    [("bf16", "rn"), ("bf16", "rz"), ("f16", "rn"), ("f16", "rz"), ("tf32", "rna"), ("tf32", "rn")],
)
def test_narrowing(target: str, mode: str) -> None:
    values = draw("f32", COUNT, 6, 12)
    half = 2.0 ** -FORMATS[target][0]
    values[:6] = [1 + half, 1 + 3 * half, -1 - half, 1 + half + 2.0**-23, 2.0**-130, -(2.0**-133)]
    (got,) = evaluate(f"cvt.{mode}.{target}.f32 %d0, %s0;", [target], [("f32", values)])
    check(got, [rounded(Fraction(v), target, mode) for v in values], target)


def test_pairs_take_the_first_source_high() -> None:
    for type_ in ("bf16", "f16"):
        (got,) = evaluate(
            f"cvt.rn.{type_}x2.f32 %d0, %s0, %s1;", ["u32"], [("f32", [1.5]), ("f32", [-2.0])]
        )
        high, low = as_bits([1.5, -2.0], type_).view(np.uint16).tolist()
        assert got.tolist() == [high << 16 | low]


def test_special_values() -> None:
    nan, inf = math.nan, math.inf
    a, b = [nan, 1.0, inf, 0.0, -0.0, nan], [1.0, nan, -inf, -0.0, 0.0, nan]
    source = [("f32", a), ("f32", b)]
    least, most = (evaluate(f"{n}.f32 %d0, %s0, %s1;", ["f32"], source)[0] for n in ("min", "max"))
    np.testing.assert_array_equal(least, np.array([1, 1, -inf, 0, 0, nan], np.float32))
    assert np.signbit(least[3:5]).all()
    np.testing.assert_array_equal(most, np.array([1, 1, inf, 0, 0, nan], np.float32))
    assert not np.signbit(most[3:5]).any()
    (strict,) = evaluate("max.NaN.f32 %d0, %s0, %s1;", ["f32"], source)
    assert np.isnan(strict[[0, 1, 5]]).all()
    for name, expected in {
        "eq": [0, 0, 0, 1, 1, 0], "ne": [0, 0, 1, 0, 0, 0], "gt": [0, 0, 1, 0, 0, 0],
        "neu": [1, 1, 1, 0, 0, 1], "geu": [1, 1, 1, 1, 1, 1], "num": [0, 0, 1, 1, 1, 0],
        "nan": [1, 1, 0, 0, 0, 1],
    }.items():  # fmt: skip
        (got,) = evaluate(f"setp.{name}.f32 %d0, %s0, %s1;", ["pred"], source)
        assert got.astype(int).tolist() == expected, name
    (sign,) = evaluate("copysign.f32 %d0, %s0, %s1;", ["f32"], [("f32", [-0.0]), ("f32", [3.0])])
    assert sign.tolist() == [-3.0]


def test_floats_to_integers() -> None:
    values = [1.5, 2.5, -1.5, -0.5, 3e9, -3e9, 1e20, math.nan, math.inf, -math.inf, 0.49999997]
    ends = {"s32": (-(2**31), 2**31 - 1), "u32": (0, 2**32 - 1)}
    for type_, (low, high) in ends.items():
        for mode, whole in {"rni": round, "rzi": math.trunc, "rmi": math.floor,
                            "rpi": math.ceil}.items():  # fmt: skip
            (got,) = evaluate(f"cvt.{mode}.{type_}.f32 %d0, %s0;", [type_], [("f32", values)])
            for result, x in zip(got.tolist(), np.array(values, np.float32).tolist(), strict=True):
                exact = 0 if math.isnan(x) else x if math.isinf(x) else whole(x)
                assert result == max(low, min(high, exact)), (type_, mode, x)
    (saturated,) = evaluate("cvt.sat.f32.f32 %d0, %s0;", ["f32"], [("f32", values)])
    expected = [1, 1, 0, 0, 1, 0, 1, 0, 1, 0, np.float32(0.49999997)]
    np.testing.assert_array_equal(saturated, np.array(expected, np.float32))


@pytest.mark.parametrize(
    ("name", "exact", "low", "high"),
    [
        ("ex2.approx.f32", lambda x: 2.0**x, -140, 120),
        ("ex2.approx.ftz.f32", lambda x: 2.0**x, -100, 100),
        ("lg2.approx.f32", math.log2, 1e-30, 1e30),
        ("rcp.approx.f32", lambda x: 1 / x, 1e-30, 1e30),
        ("rcp.rn.f32", lambda x: 1 / x, -1e6, 1e6),
        ("sqrt.approx.f32", math.sqrt, 0, 1e10),
        ("sqrt.rn.f32", math.sqrt, 0, 1e10),
        ("rsqrt.approx.f32", lambda x: 1 / math.sqrt(x), 1e-10, 1e10),
        ("tanh.approx.f32", math.tanh, -5, 5),
    ],
)
def test_functions_are_nearest(name: str, exact: object, low: float, high: float) -> None:
    rng = np.random.default_rng(0)
    x = rng.uniform(low, high, COUNT).astype(np.float32)
    (got,) = evaluate(f"{name} %d0, %s0;", ["f32"], [("f32", x.tolist())])
    expected = [np.float32(exact(float(v))) for v in x]  # type: ignore[operator]
    np.testing.assert_array_equal(got, np.array(expected, np.float32))


def test_subnormals_are_flushed_where_asked() -> None:
    small = struct.unpack("<f", struct.pack("<I", 0x80000001))[0]
    for code, expected in (("add.f32", small), ("add.ftz.f32", -0.0)):
        (got,) = evaluate(f"{code} %d0, %s0, %s1;", ["f32"], [("f32", [small]), ("f32", [-0.0])])
        assert got.tolist() == [expected]
        assert np.signbit(got).all()


def test_bfloat16_comparisons_and_signs() -> None:
    a, b = as_bits([1.0, -2.0, math.nan], "bf16"), as_bits([1.0, 3.0, 0.0], "bf16")
    source = [("bf16", a.tolist()), ("bf16", b.tolist())]
    (less,) = evaluate("setp.lt.bf16 %d0, %s0, %s1;", ["pred"], source)
    assert less.tolist() == [False, True, False]
    (positive,) = evaluate("abs.bf16 %d0, %s0;", ["bf16"], source[:1])
    assert positive.tolist()[:2] == as_bits([1.0, 2.0], "bf16").tolist()
