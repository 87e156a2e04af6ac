"""The player's integer instructions against Python's integers, by the ISA's definitions."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.ptx.bits import PRMT_MODES
from tests.ptx.evaluate import evaluate

pytestmark = pytest.mark.full
FEW = settings(max_examples=8)
EDGES = [0, 1, 2, 7, 31, 32, 33, 63, 64, 255, 0x7FFF, 0x8000, 2**31 - 1, 2**31, 2**32 - 1, 2**63]
numbers = st.lists(
    st.tuples(*[st.one_of(st.sampled_from(EDGES), st.integers(0, 2**64 - 1))] * 3),
    min_size=8, max_size=8,
)  # fmt: skip


def wrapped(value: int, type_: str) -> int:
    """value as the integer that the type's bits stand for."""
    bits = int(type_[1:])
    value %= 1 << bits
    return value - (1 << bits) if type_[0] == "s" and value >> (bits - 1) else value


def toward_zero(a: int, b: int) -> int:
    return abs(a) // abs(b) * (-1 if (a < 0) != (b < 0) else 1)


def shift_right(a: int, by: int, type_: str) -> int:
    return a >> min(by, int(type_[1:]))


BINARY: dict[str, Callable[[int, int, str], int]] = {
    "add": lambda a, b, t: a + b,
    "sub": lambda a, b, t: a - b,
    "mul.lo": lambda a, b, t: a * b,
    "mul.hi": lambda a, b, t: (a * b) >> int(t[1:]),
    "min": lambda a, b, t: min(a, b),
    "max": lambda a, b, t: max(a, b),
    "div": lambda a, b, t: toward_zero(a, b) if b else -1,
    "rem": lambda a, b, t: a - b * toward_zero(a, b) if b else -1,
}


@pytest.mark.parametrize("type_", ["u16", "s16", "u32", "s32", "u64", "s64"])
@pytest.mark.parametrize("name", list(BINARY))
@FEW
@given(values=numbers)
def test_arithmetic(name: str, type_: str, values: list[tuple[int, int, int]]) -> None:
    a = [wrapped(x, type_) for x, _, _ in values]
    b = [wrapped(y, type_) for _, y, _ in values]
    (got,) = evaluate(f"{name}.{type_} %d0, %s0, %s1;", [type_], [(type_, a), (type_, b)])
    expected = [wrapped(BINARY[name](x, y, type_), type_) for x, y in zip(a, b, strict=True)]
    assert got.tolist() == expected


@pytest.mark.parametrize("type_", ["u16", "s16", "u32", "s32"])
@FEW
@given(values=numbers)
def test_wide_products(type_: str, values: list[tuple[int, int, int]]) -> None:
    wide = f"{type_[0]}{2 * int(type_[1:])}"
    a, b = ([wrapped(v[i], type_) for v in values] for i in (0, 1))
    c = [wrapped(v[2], wide) for v in values]
    (got,) = evaluate(
        f"mad.wide.{type_} %d0, %s0, %s1, %s2;", [wide], [(type_, a), (type_, b), (wide, c)]
    )
    assert got.tolist() == [wrapped(x * y + z, wide) for x, y, z in zip(a, b, c, strict=True)]


@pytest.mark.parametrize("type_", ["b16", "b32", "b64", "s16", "s32", "s64"])
@FEW
@given(values=numbers)
def test_shifts(type_: str, values: list[tuple[int, int, int]]) -> None:
    plain = type_ if type_[0] == "s" else f"u{type_[1:]}"
    a = [wrapped(v[0], plain) for v in values]
    by = [v[1] % 80 for v in values]
    source = [(plain, a), ("u32", by)]
    (right,) = evaluate(f"shr.{type_} %d0, %s0, %s1;", [plain], source)
    assert right.tolist() == [shift_right(x, n, type_) for x, n in zip(a, by, strict=True)]
    if type_[0] == "b":
        (left,) = evaluate(f"shl.{type_} %d0, %s0, %s1;", [plain], source)
        assert left.tolist() == [wrapped(x << n, plain) for x, n in zip(a, by, strict=True)]


@FEW
@given(values=numbers, entries=st.integers(0, 255))
def test_lop3(values: list[tuple[int, int, int]], entries: int) -> None:
    columns = [[v[i] % 2**32 for v in values] for i in range(3)]
    (got,) = evaluate(
        f"lop3.b32 %d0, %s0, %s1, %s2, {entries};", ["u32"], [("u32", c) for c in columns]
    )
    for result, *abc in zip(got.tolist(), *columns, strict=True):
        for bit in range(32):
            a, b, c = (x >> bit & 1 for x in abc)
            assert result >> bit & 1 == entries >> (4 * a + 2 * b + c) & 1


def test_lop3_tables_of_the_isa() -> None:
    """The manual's own examples: a table is the function applied to 0xF0, 0xCC and 0xAA."""
    a, b, c = 0x12345678, 0x9ABCDEF0, 0x0F1E2D3C
    for entries, expected in [
        (0xF0 & 0xCC & 0xAA, a & b & c), (0xF0 | 0xCC | 0xAA, a | b | c),
        (0xF0 & 0xCC & (~0xAA & 0xFF), a & b & ~c), ((0xF0 & 0xCC) | 0xAA, (a & b) | c),
        (0xF0 ^ 0xCC ^ 0xAA, a ^ b ^ c),
    ]:  # fmt: skip
        (got,) = evaluate(
            f"lop3.b32 %d0, %s0, %s1, %s2, {entries};", ["u32"],
            [("u32", [a]), ("u32", [b]), ("u32", [c])],
        )  # fmt: skip
        assert got.tolist() == [expected % 2**32]


@FEW
@given(values=numbers)
def test_prmt(values: list[tuple[int, int, int]]) -> None:
    a, b, c = ([v[i] % 2**32 for v in values] for i in range(3))
    source = [("u32", a), ("u32", b), ("u32", c)]
    (got,) = evaluate("prmt.b32 %d0, %s0, %s1, %s2;", ["u32"], source)
    for result, x, y, selectors in zip(got.tolist(), a, b, c, strict=True):
        both = (x | y << 32).to_bytes(8, "little")
        for i in range(4):
            selector = selectors >> 4 * i & 15
            byte = both[selector & 7]
            expected = (255 if byte & 0x80 else 0) if selector & 8 else byte
            assert result >> 8 * i & 255 == expected


def test_prmt_modes() -> None:
    """The manual's table, for a = 0x33221100, b = 0x77665544."""
    expected = {
        "f4e": [0x33221100, 0x44332211, 0x55443322, 0x66554433],
        "b4e": [0x55667700, 0x66770011, 0x77001122, 0x00112233],
        "rc8": [0x00000000, 0x11111111, 0x22222222, 0x33333333],
        "ecl": [0x33221100, 0x33221111, 0x33222222, 0x33333333],
        "ecr": [0x00000000, 0x11111100, 0x22221100, 0x33221100],
        "rc16": [0x11001100, 0x33223322, 0x11001100, 0x33223322],
    }
    assert expected.keys() == PRMT_MODES.keys()
    for mode, results in expected.items():
        source = [("u32", [0x33221100] * 4), ("u32", [0x77665544] * 4), ("u32", [0, 1, 2, 3])]
        (got,) = evaluate(f"prmt.b32.{mode} %d0, %s0, %s1, %s2;", ["u32"], source)
        assert [hex(v) for v in got.tolist()] == [hex(v) for v in results], mode


@pytest.mark.parametrize("type_", ["u32", "s32", "u64", "s64"])
@FEW
@given(values=numbers)
def test_bit_fields(type_: str, values: list[tuple[int, int, int]]) -> None:
    width = int(type_[1:])
    a = [wrapped(v[0], type_) for v in values]
    at = [v[1] % 70 for v in values]
    length = [v[2] % 70 for v in values]
    (got,) = evaluate(
        f"bfe.{type_} %d0, %s0, %s1, %s2;", [type_], [(type_, a), ("u32", at), ("u32", length)]
    )
    for result, x, p, n in zip(got.tolist(), a, at, length, strict=True):
        bits = x % (1 << width)
        sign = bits >> min(p + n - 1, width - 1) & 1 if n and type_[0] == "s" else 0
        expected = sum(
            (bits >> (p + i) & 1 if i < n and p + i < width else sign) << i for i in range(width)
        )
        assert result == wrapped(expected, type_), (hex(bits), p, n)


@pytest.mark.parametrize("width", [32, 64])
@FEW
@given(values=numbers)
def test_bit_insertion(width: int, values: list[tuple[int, int, int]]) -> None:
    type_ = f"u{width}"
    a = [v[0] % (1 << width) for v in values]
    b = [v[1] % (1 << width) for v in values]
    at, length = [v[2] % 70 for v in values], [v[2] // 70 % 70 for v in values]
    (got,) = evaluate(
        f"bfi.b{width} %d0, %s0, %s1, %s2, %s3;", [type_],
        [(type_, a), (type_, b), ("u32", at), ("u32", length)],
    )  # fmt: skip
    for result, x, y, p, n in zip(got.tolist(), a, b, at, length, strict=True):
        expected = y
        for i in range(n):
            if p + i < width:
                expected = (expected & ~(1 << (p + i))) | (x >> i & 1) << (p + i)
        assert result == expected


@pytest.mark.parametrize("way", ["l", "r"])
@pytest.mark.parametrize("mode", ["wrap", "clamp"])
@FEW
@given(values=numbers)
def test_funnel_shifts(way: str, mode: str, values: list[tuple[int, int, int]]) -> None:
    a, b = ([v[i] % 2**32 for v in values] for i in (0, 1))
    c = [v[2] % 70 for v in values]
    (got,) = evaluate(
        f"shf.{way}.{mode}.b32 %d0, %s0, %s1, %s2;", ["u32"],
        [("u32", a), ("u32", b), ("u32", c)],
    )  # fmt: skip
    for result, low, high, by in zip(got.tolist(), a, b, c, strict=True):
        n = by & 31 if mode == "wrap" else min(by, 32)
        if way == "l":
            expected = (high << n | low >> (32 - n)) % 2**32
        else:
            expected = (high << (32 - n) | low >> n) % 2**32
        assert result == expected


@FEW
@given(values=numbers)
def test_counting_bits(values: list[tuple[int, int, int]]) -> None:
    a = [v[0] % 2**32 for v in values]
    got = {
        name: evaluate(f"{name} %d0, %s0;", ["u32"], [("u32", a)])[0].tolist()
        for name in ("popc.b32", "clz.b32", "brev.b32", "bfind.u32", "not.b32")
    }
    assert got["popc.b32"] == [x.bit_count() for x in a]
    assert got["clz.b32"] == [32 - x.bit_length() for x in a]
    assert got["brev.b32"] == [int(f"{x:032b}"[::-1], 2) for x in a]
    assert got["bfind.u32"] == [(x.bit_length() - 1) % 2**32 for x in a]
    assert got["not.b32"] == [~x % 2**32 for x in a]


COMPARISONS: dict[str, Callable[[int, int], bool]] = {
    "eq": int.__eq__, "ne": int.__ne__, "lt": int.__lt__, "le": int.__le__, "gt": int.__gt__,
    "ge": int.__ge__,
}  # fmt: skip


@pytest.mark.parametrize("type_", ["u16", "s16", "u32", "s32", "u64", "s64"])
@pytest.mark.parametrize("name", list(COMPARISONS))
@FEW
@given(values=numbers)
def test_comparisons(name: str, type_: str, values: list[tuple[int, int, int]]) -> None:
    a, b = ([wrapped(v[i], type_) for v in values] for i in (0, 1))
    given_ = [bool(v[2] & 1) for v in values]
    source = [(type_, a), (type_, b), ("pred", given_)]
    (plain,) = evaluate(f"setp.{name}.{type_} %d0, %s0, %s1;", ["pred"], source[:2])
    mixed, other = evaluate(
        f"setp.{name}.and.{type_} %d0|%d1, %s0, %s1, !%s2;", ["pred", "pred"], source
    )
    truth = [COMPARISONS[name](x, y) for x, y in zip(a, b, strict=True)]
    assert plain.tolist() == truth
    assert mixed.tolist() == [t and not g for t, g in zip(truth, given_, strict=True)]
    assert other.tolist() == [not t and not g for t, g in zip(truth, given_, strict=True)]


@FEW
@given(values=numbers)
def test_conversions_between_integers(values: list[tuple[int, int, int]]) -> None:
    for source in ("u16", "s16", "u32", "s32", "u64", "s64"):
        a = [wrapped(v[0], source) for v in values]
        for target in ("u8", "s8", "u16", "s16", "u32", "s32", "u64", "s64"):
            wide = target if target[1:] != "8" else f"{target[0]}16"
            (got,) = evaluate(f"cvt.{target}.{source} %d0, %s0;", [wide], [(source, a)])
            assert got.tolist() == [wrapped(x, target) for x in a], (source, target)


def test_packing() -> None:
    low, high = evaluate("mov.b32 {%d0, %d1}, %s0;", ["u16", "u16"], [("u32", [0x12345678])])
    assert (low.tolist(), high.tolist()) == ([0x5678], [0x1234])
    (whole,) = evaluate(
        "mov.b64 %d0, {%s0, %s1};", ["u64"], [("u32", [0x01234567]), ("u32", [0x89ABCDEF])]
    )
    assert whole.tolist() == [0x89ABCDEF01234567]
