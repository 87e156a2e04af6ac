"""Arithmetic, comparisons, moves and conversions.

The instructions and types that NVRTC and Triton emit for kernels of this package. Each result is
rounded once, as IEEE 754 has it. Approximate functions return the float32 nearest to the exact
result, which is inside the ISA's bounds.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np

from tests.ptx.lanes import DTYPES, Action, Computation, Group, Registers, computes, form, put
from tests.ptx.parse import SIZES, Instruction

INTEGER = r"([us](?:16|32|64))"
WIDER = {"u16": "u32", "s16": "s32", "u32": "u64", "s32": "s64"}


def flushed(x: np.ndarray) -> np.ndarray:
    """Subnormal float32 as zeros of their sign: the modifier ftz."""
    return np.where(np.abs(x) < np.float32(2.0**-126), np.copysign(np.float32(0), x), x)


def from_bf16(bits: np.ndarray) -> np.ndarray:
    """As float32."""
    return (bits.astype(np.uint32) << np.uint32(16)).view(np.float32)


def to_bf16(x: np.ndarray) -> np.ndarray:
    """The bits of float32 rounded to nearest even."""
    bits = x.view(np.uint32)
    rounded = (bits + np.uint32(0x7FFF) + (bits >> np.uint32(16) & np.uint32(1))) >> np.uint32(16)
    return np.where(np.isnan(x), np.uint32(0x7FFF), rounded).astype(np.uint16)


def exact_sum(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """a + b of float64, rounded to odd: what a second rounding, to float32, needs to know.

    Source: Boldo and Melquiond, Emulation of FMA and correctly rounded sums (2008).
    """
    total = a + b
    other = total - a
    error = (a - (total - other)) + (b - other)
    bits = total.view(np.int64)
    inexact = (error != 0) & ((bits & 1) == 0) & np.isfinite(total)
    outward = (error > 0) == ~np.signbit(total)
    return np.where(inexact, bits + np.where(outward, 1, -1), bits).view(np.float64)


def to_float32(x: np.ndarray, mode: str) -> np.ndarray:
    """Float64 to nearest even (rn), to zero (rz) or down (rm)."""
    nearest = x.astype(np.float32)
    if mode == "rn":
        return nearest
    down = (nearest > x) & (mode == "rm" or x > 0)
    up = (nearest < x) & (mode == "rz") & (x < 0)
    result = np.where(down, np.nextafter(nearest, np.float32(-np.inf)), nearest)
    return np.where(up, np.nextafter(nearest, np.float32(np.inf)), result)


def fused(a: np.ndarray, b: np.ndarray, c: np.ndarray, mode: str = "rn") -> np.ndarray:
    """a b + c of float32, rounded once.

    The product is exact in float64. Most sums are far from the middle between two float32, and
    rounding twice is then rounding once.
    """
    product = np.multiply(a, b, dtype=np.float64)
    total = product + c
    middle = (total.view(np.uint64) & np.uint64(0x1FFFFFFF)) == np.uint64(0x10000000)
    tiny = (np.abs(total) < 2.0**-126) & (total != 0)
    if mode != "rn" or middle.any() or tiny.any():
        return to_float32(exact_sum(product, c.astype(np.float64)), mode)
    return total.astype(np.float32)


def largest(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """The other operand where one is a NaN; +0 is above -0."""
    return np.where((a == 0) & (b == 0), a + b, np.fmax(a, b))


def in_float64(exact: np.ufunc) -> Callable[[np.ndarray], np.ndarray]:
    return lambda x: exact(x.astype(np.float64)).astype(np.float32)


# How many sources, and the function of them.
FLOATS: dict[str, tuple[int, Callable[..., np.ndarray]]] = {
    "add": (2, np.add), "sub": (2, np.subtract), "mul": (2, np.multiply), "fma": (3, fused),
    "div": (2, np.divide), "neg": (1, np.negative), "abs": (1, np.absolute),
    "max": (2, largest), "min": (2, lambda a, b: -largest(-a, -b)),
    "copysign": (2, lambda sign, x: np.copysign(x, sign)),
    "ex2": (1, in_float64(np.exp2)), "rcp": (1, in_float64(np.reciprocal)),
    "sqrt": (1, in_float64(np.sqrt)),
}  # fmt: skip


@computes(r"(add|sub|mul|fma|neg|abs|min|max|copysign)(?:\.(rn|rz|rm))?(\.ftz)?\.f32")
@computes(r"(ex2|rcp|sqrt|div)\.(rn|approx|full)(\.ftz)?\.f32")
def float32(name: str, mode: str, flush: str) -> Computation:
    count, function = FLOATS[name]
    if mode in ("rz", "rm"):
        exact = partial(fused, mode=mode)
        function = {"fma": exact, "add": partial(exact, np.float32(1))}[name]
    # A lambda, since the name of the form says what a function of its own would.
    flushing = lambda *values: flushed(function(*map(flushed, values)))  # noqa: E731
    return ("f32",) * count, "f32", flushing if flush else function


UFUNCS = {
    "add": np.add, "sub": np.subtract, "min": np.minimum, "max": np.maximum, "neg": np.negative,
    "abs": np.absolute, "and": np.bitwise_and, "or": np.bitwise_or, "xor": np.bitwise_xor,
    "not": np.invert, "shl": np.left_shift, "shr": np.right_shift,
}  # fmt: skip


@computes(rf"(add|sub|min|max|neg|abs)\.{INTEGER}")
@computes(r"(and|or|xor|not)\.(b16|b32|b64|pred)")
def simple(name: str, type_: str) -> Computation:
    return (type_,) * UFUNCS[name].nin, type_, UFUNCS[name]


@computes(r"abs\.b?f16")
def absolute() -> Computation:
    return ("b16",), "b16", lambda a: a & np.uint16(0x7FFF)


@computes(rf"(mul|mad)\.(lo|hi|wide)\.{INTEGER}")
def multiply(name: str, part: str, type_: str) -> Computation:
    """a b: its low or high half, or all of it, in the wider type; mad adds a third source."""
    result = WIDER[type_] if part == "wide" else type_

    def product(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        if part == "lo":
            return a * b
        wide = a.astype(DTYPES[WIDER[type_]]) * b.astype(DTYPES[WIDER[type_]])
        if part == "wide":
            return wide
        return (wide >> wide.dtype.type(8 * SIZES[type_])).astype(DTYPES[type_])

    if name == "mul":
        return (type_, type_), result, product
    return (type_, type_, result), result, lambda a, b, c: product(a, b) + c


@computes(rf"(div|rem)\.{INTEGER}")
def divide(name: str, type_: str) -> Computation:
    """Toward zero. By zero the ISA leaves the result open: all ones here."""

    def divided(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        by = np.where(b == 0, b.dtype.type(1), b)
        quotient = a // by
        if a.dtype.kind == "i":
            quotient = quotient + ((quotient * by != a) & ((a < 0) != (by < 0)))
        value = a - quotient * by if name == "rem" else quotient
        return np.where(b == 0, ~b.dtype.type(0), value).astype(a.dtype)

    return (type_, type_), type_, divided


@computes(r"(shl|shr)\.([usb](?:16|32|64))")
def shift(name: str, type_: str) -> Computation:
    """By the width or more, all bits leave."""
    width, ufunc = 8 * SIZES[type_], UFUNCS[name]

    def shifted(a: np.ndarray, by: np.ndarray) -> np.ndarray:
        inside = ufunc(a, np.minimum(by, width - 1).astype(a.dtype))
        if by.max() < width:
            return inside
        filling = a < 0 if a.dtype.kind == "i" and name == "shr" else False
        beyond = np.where(filling, a.dtype.type(0) - a.dtype.type(1), a.dtype.type(0))
        return np.where(by < width, inside, beyond)

    return (type_, "u32"), type_, shifted


@computes(r"prmt\.b32")
def permute() -> Computation:
    """Bytes of the eight of b:a, chosen by the nibbles of c; bit 3 of one spreads the sign."""

    def permuted(a: np.ndarray, b: np.ndarray, c: np.ndarray) -> np.ndarray:
        both = np.stack((a, b), 1).view(np.uint8)  # (lanes, 8)
        nibbles = c[:, None] >> np.arange(0, 16, 4, np.uint32) & np.uint32(15)  # (lanes, 4)
        chosen = np.take_along_axis(both, (nibbles & 7).astype(np.intp), 1)
        sign = np.where(chosen & 0x80, np.uint8(0xFF), np.uint8(0))
        return np.where(nibbles & 8, sign, chosen).view(np.uint32)[:, 0]

    return ("u32",) * 3, "u32", permuted


@computes(r"bfe\.([us]32)")
def extract(type_: str) -> Computation:
    """The field of `length` bits at `position`; of a signed type its sign fills the rest."""

    def extracted(a: np.ndarray, position: np.ndarray, length: np.ndarray) -> np.ndarray:
        length = (length & np.uint32(255)).astype(np.int64)
        unused = np.clip(64 - length, 0, 63)
        wide = a.astype(np.int64) >> np.minimum(position & np.uint32(255), 63).astype(np.int64)
        wide, unused = (v.astype(np.int64 if type_ == "s32" else np.uint64) for v in (wide, unused))
        return np.where(length, (wide << unused) >> unused, 0).astype(a.dtype)

    return (type_, "u32", "u32"), type_, extracted


ORDERED = {
    "eq": np.equal, "ne": np.not_equal, "lt": np.less, "le": np.less_equal, "gt": np.greater,
    "ge": np.greater_equal,
}  # fmt: skip


@computes(r"setp\.(eq|ne|lt|le|gt|ge)(u?)\.([usb](?:16|32|64)|f32|f16)")
def compare(name: str, unordered: str, type_: str) -> Computation:
    """An ordered comparison of floats is false for a NaN, an unordered one true."""
    compared = ORDERED[name]
    if unordered:
        function = lambda a, b: compared(a, b) | np.isnan(a) | np.isnan(b)  # noqa: E731
    elif name == "ne" and type_[0] == "f":
        function = lambda a, b: (a != b) & ~(np.isnan(a) | np.isnan(b))  # noqa: E731
    else:
        function = compared
    return (type_, type_), "pred", function


@computes(r"selp\.(\w+)")
def select(type_: str) -> Computation:
    return (type_, type_, "pred"), type_, lambda a, b, p: np.where(p, a, b)


@form(r"mov\.(\w+)")
def move(instruction: Instruction, registers: Registers, type_: str) -> Action:
    """A register to a register, from parts or into parts, the lowest first."""
    target, source = instruction.operands
    if not target.parts and not source.parts:
        a, d = registers.read(source, type_), registers.write(target, type_)
        return lambda group: put(d, a, group)
    part = f"b{8 * SIZES[type_] // len(target.parts or source.parts)}"
    if target.parts:
        a = registers.read(source, type_)
        outputs = [registers.write(operand, part) for operand in target.parts]

        def split(group: Group) -> None:
            pieces = np.array(a).view(DTYPES[part]).reshape(-1, len(outputs))
            for i, output in enumerate(outputs):
                put(output, pieces[:, i], group)

        return split
    d = registers.write(target, type_)
    inputs = [registers.read(operand, part) for operand in source.parts]
    return lambda group: put(d, np.stack(inputs, 1).reshape(-1).view(d.dtype), group)


def truncated(x: np.ndarray) -> np.ndarray:
    """Int32; beyond the range its end, and a NaN is 0."""
    ends = np.iinfo(np.int32)
    inside = np.clip(np.trunc(x.astype(np.float64)), ends.min, ends.max)
    return np.where(np.isnan(inside), 0.0, inside).astype(np.int32)


def saturated(x: np.ndarray) -> np.ndarray:
    """In [0, 1]; a NaN becomes 0."""
    return np.where(np.isnan(x), x.dtype.type(0), np.clip(x, 0, 1))


CONVERSIONS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "rn.bf16.f32": to_bf16, "rn.f16.f32": lambda x: x.astype(np.float16),
    "f32.bf16": from_bf16, "f32.f16": lambda x: x.astype(np.float32),
    "rni.f32.f32": np.rint, "rzi.s32.f32": truncated, "sat.f32.f32": saturated,
}  # fmt: skip


@computes(r"cvt\.rn\.(bf16|f16)x2\.f32")
def convert_pair(type_: str) -> Computation:
    """The first source becomes the high half."""
    narrow = CONVERSIONS[f"rn.{type_}.f32"]

    def both(high: np.ndarray, low: np.ndarray) -> np.ndarray:
        return np.stack((narrow(low), narrow(high)), 1).view(np.uint32)[:, 0]

    return ("f32", "f32"), "b32", both


@form(r"cvt\.((?:(?:rn|rni|rzi|sat)\.)?\w+\.\w+)")
def convert(instruction: Instruction, registers: Registers, what: str) -> Action:
    """The target register may be wider than its type."""
    target, source = what.split(".")[-2:]
    if source[0] in "us" and what in (f"{target}.{source}", f"rn.f32.{source}"):
        function = lambda x: x.astype(DTYPES[target])  # noqa: E731
    else:
        function = CONVERSIONS[what]
    a = registers.read(instruction.operands[1], source)
    write = registers.write_extended(instruction.operands[0], target)
    return lambda group: write(group.lanes, function(a)[group.lanes])
