"""Arithmetic, comparisons, moves and conversions.

The instructions and types that nvcc and Triton emit for the kernels of this package. Each result is
rounded once, as IEEE 754 has it. Approximate functions return the float32 nearest to the exact
result, which is inside the ISA's bounds.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from tests.ptx.lanes import (
    DTYPES,
    Action,
    Group,
    Modifiers,
    Registers,
    form,
    put,
    refuse,
    sources,
)
from tests.ptx.parse import SIZES, Instruction, Operand

INTEGERS = {"u16", "s16", "u32", "s32", "u64", "s64"}
BITS = {"b16", "b32", "b64"}
WIDER = {"u16": "u32", "s16": "s32", "u32": "u64", "s32": "s64"}


def computed(
    instruction: Instruction, registers: Registers, types: tuple[str, ...], result: str,
    function: Callable[..., np.ndarray],
) -> Action:  # fmt: skip
    """function: of the sources, each read as its type."""
    inputs = sources(instruction, registers, types)
    d = registers.write(instruction.operands[0], result)
    if isinstance(function, np.ufunc):
        return lambda group: function(*inputs, out=d, where=group.where)
    return lambda group: put(d, function(*inputs), group)


# ---- floats -----------------------------------------------------------------------------------


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
    """Float64 to nearest even (rn), to zero (rz), down (rm) or up (rp)."""
    nearest = x.astype(np.float32)
    if mode == "rn":
        return nearest
    down = (nearest > x) & (mode == "rm" or (mode == "rz" and x > 0))
    up = (nearest < x) & (mode == "rp" or (mode == "rz" and x < 0))
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


def summed(a: np.ndarray, b: np.ndarray, mode: str) -> np.ndarray:
    return to_float32(exact_sum(a.astype(np.float64), b.astype(np.float64)), mode)


def largest(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """The other operand where one is a NaN; +0 is above -0."""
    return np.where((a == 0) & (b == 0), a + b, np.fmax(a, b))


def smallest(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return -largest(-a, -b)


def in_float64(exact: Callable[[np.ndarray], np.ndarray]) -> Callable[[np.ndarray], np.ndarray]:
    return lambda x: exact(x.astype(np.float64)).astype(np.float32)


UNARY = {"ex2": np.exp2, "lg2": np.log2, "rcp": np.reciprocal, "sqrt": np.sqrt}
ROUNDINGS = ("rn", "rz", "rm", "rp")
ROUNDED_EXACTLY = ("rcp", "sqrt", "div")  # with .rn; the others with .approx alone


def float32(instruction: Instruction, registers: Registers) -> Action:
    """An instruction of float32."""
    modifiers, name = Modifiers(instruction), instruction.opcode
    if modifiers.type() != "f32":
        raise refuse(instruction)
    mode, flush = modifiers.take(*ROUNDINGS), bool(modifiers.take("ftz"))
    approximate = bool(modifiers.take("approx", "full"))
    modifiers.done()
    functions: dict[str, Callable[..., np.ndarray]] = {
        "add": np.add, "sub": np.subtract, "mul": np.multiply, "div": np.divide, "fma": fused,
        "min": smallest, "max": largest, "neg": np.negative, "abs": np.absolute,
        "copysign": lambda sign, x: np.copysign(x, sign),
        **{key: in_float64(exact) for key, exact in UNARY.items()},
    }  # fmt: skip
    function = functions[name]
    if name in UNARY or name == "div":
        if approximate == bool(mode) or (mode and name not in ROUNDED_EXACTLY):
            raise refuse(instruction)
    elif approximate:
        raise refuse(instruction)
    if mode in ("rz", "rm", "rp"):
        if name not in ("add", "fma"):
            raise refuse(instruction)
        rounded = {"add": summed, "fma": fused}[name]
        function = lambda *values: rounded(*values, mode)  # noqa: E731
    if flush:
        kept = function
        function = lambda *values: flushed(kept(*map(flushed, values)))  # noqa: E731
    count = len(instruction.operands) - 1
    return computed(instruction, registers, ("f32",) * count, "f32", function)


form("fma", "copysign", *UNARY)(float32)


# ---- integers and bits ------------------------------------------------------------------------


def type_of(instruction: Instruction) -> str:
    return instruction.modifiers[-1]


@form("add", "sub", "min", "max", "neg", "abs")
def simple(instruction: Instruction, registers: Registers) -> Action:
    name, type_ = instruction.opcode, type_of(instruction)
    if type_ in ("f16", "bf16") and instruction.modifiers == (type_,) and name == "abs":
        return computed(instruction, registers, ("b16",), "b16", lambda a: a & np.uint16(0x7FFF))
    if type_ not in INTEGERS:
        return float32(instruction, registers)
    if instruction.modifiers != (type_,):
        raise refuse(instruction)
    ufunc = {
        "add": np.add, "sub": np.subtract, "min": np.minimum, "max": np.maximum,
        "neg": np.negative, "abs": np.absolute,
    }[name]  # fmt: skip
    return computed(instruction, registers, (type_,) * ufunc.nin, type_, ufunc)


def product(a: np.ndarray, b: np.ndarray, type_: str, part: str) -> np.ndarray:
    """a b: its low or high half, or all of it, in the wider type."""
    if part == "lo":
        return a * b
    wide = a.astype(DTYPES[WIDER[type_]]) * b.astype(DTYPES[WIDER[type_]])
    if part == "wide":
        return wide
    return (wide >> wide.dtype.type(8 * SIZES[type_])).astype(DTYPES[type_])


@form("mul", "mad")
def mul(instruction: Instruction, registers: Registers) -> Action:
    type_ = type_of(instruction)
    if type_ == "f32" and instruction.opcode == "mul":
        return float32(instruction, registers)
    part, *rest = instruction.modifiers
    if rest != [type_] or part not in ("lo", "hi", "wide") or type_ not in INTEGERS:
        raise refuse(instruction)
    if part != "lo" and type_ not in WIDER:
        raise refuse(instruction)
    result = WIDER[type_] if part == "wide" else type_
    if instruction.opcode == "mad":
        return computed(
            instruction, registers, (type_, type_, result), result,
            lambda a, b, c: product(a, b, type_, part) + c,
        )  # fmt: skip
    if part == "lo":
        return computed(instruction, registers, (type_, type_), result, np.multiply)
    return computed(
        instruction, registers, (type_, type_), result, lambda a, b: product(a, b, type_, part)
    )


def divided(a: np.ndarray, b: np.ndarray, remainder: bool) -> np.ndarray:
    """Toward zero. By zero the ISA leaves the result open: all ones here."""
    by = np.where(b == 0, b.dtype.type(1), b)
    quotient = a // by
    if a.dtype.kind == "i":
        quotient = quotient + ((quotient * by != a) & ((a < 0) != (by < 0)))
    value = a - quotient * by if remainder else quotient
    return np.where(b == 0, ~b.dtype.type(0), value).astype(a.dtype)


@form("div", "rem")
def div(instruction: Instruction, registers: Registers) -> Action:
    type_, remainder = type_of(instruction), instruction.opcode == "rem"
    if type_ not in INTEGERS and not remainder:
        return float32(instruction, registers)
    if instruction.modifiers != (type_,):
        raise refuse(instruction)
    return computed(
        instruction, registers, (type_, type_), type_, lambda a, b: divided(a, b, remainder)
    )


@form("and", "or", "xor", "not")
def logic(instruction: Instruction, registers: Registers) -> Action:
    type_ = type_of(instruction)
    if instruction.modifiers != (type_,) or type_ not in BITS | {"pred"}:
        raise refuse(instruction)
    ufunc = {
        "and": np.bitwise_and, "or": np.bitwise_or, "xor": np.bitwise_xor, "not": np.invert,
    }[instruction.opcode]  # fmt: skip
    return computed(instruction, registers, (type_,) * ufunc.nin, type_, ufunc)


@form("shl", "shr")
def shift(instruction: Instruction, registers: Registers) -> Action:
    """By the width or more, all bits leave."""
    type_ = type_of(instruction)
    if instruction.modifiers != (type_,) or type_ not in INTEGERS | BITS:
        raise refuse(instruction)
    width = 8 * SIZES[type_]
    ufunc = np.left_shift if instruction.opcode == "shl" else np.right_shift

    def shifted(a: np.ndarray, by: np.ndarray) -> np.ndarray:
        inside = ufunc(a, np.minimum(by, width - 1).astype(a.dtype))
        filling = a < 0 if a.dtype.kind == "i" and ufunc is np.right_shift else False
        beyond = np.where(filling, a.dtype.type(0) - a.dtype.type(1), a.dtype.type(0))
        return np.where(by < width, inside, beyond)

    by = instruction.operands[2]
    if by.kind == "integer" and by.value < width:
        a = registers.read(instruction.operands[1], type_)
        d = registers.write(instruction.operands[0], type_)
        fixed = np.full(registers.count, by.value, a.dtype)
        return lambda group: ufunc(a, fixed, out=d, where=group.where)
    return computed(instruction, registers, (type_, "u32"), type_, shifted)


def permuted(a: np.ndarray, b: np.ndarray, c: np.ndarray) -> np.ndarray:
    """Bytes of the eight of b:a, chosen by the nibbles of c; bit 3 of one spreads the sign."""
    both = np.stack((a, b), 1).view(np.uint8)  # (lanes, 8)
    result = np.empty((len(a), 4), np.uint8)
    rows = np.arange(len(a))
    for i in range(4):
        nibble = c >> np.uint32(4 * i) & np.uint32(15)
        byte = both[rows, (nibble & np.uint32(7)).astype(np.intp)]
        sign = np.where(byte & 0x80, np.uint8(0xFF), np.uint8(0))
        result[:, i] = np.where(nibble & np.uint32(8), sign, byte)
    return result.view(np.uint32)[:, 0]


def extracted(a: np.ndarray, position: np.ndarray, length: np.ndarray) -> np.ndarray:
    """The field of `length` bits at `position`; of a signed type its sign fills the rest."""
    wide = a.astype(np.int64) >> np.minimum(position & np.uint32(255), 63).astype(np.int64)
    unused = np.maximum(64 - (length & np.uint32(255)).astype(np.int64), 0)
    if a.dtype.kind == "u":
        unused = np.minimum(unused, 63)
        field = (wide.view(np.uint64) << unused.view(np.uint64)) >> unused.view(np.uint64)
    else:
        field = (wide << np.minimum(unused, 63)) >> np.minimum(unused, 63)
    return np.where(length & np.uint32(255), field, 0).astype(a.dtype)


@form("prmt", "bfe")
def bytes_and_fields(instruction: Instruction, registers: Registers) -> Action:
    name, modifiers = instruction.opcode, instruction.modifiers
    if name == "prmt" and modifiers == ("b32",):
        return computed(instruction, registers, ("u32",) * 3, "u32", permuted)
    if name == "bfe" and modifiers in (("u32",), ("s32",)):
        return computed(instruction, registers, (*modifiers, "u32", "u32"), *modifiers, extracted)
    raise refuse(instruction)


# ---- comparisons, moves -----------------------------------------------------------------------

ORDERED = {
    "eq": np.equal, "ne": np.not_equal, "lt": np.less, "le": np.less_equal, "gt": np.greater,
    "ge": np.greater_equal,
}  # fmt: skip


def comparison(name: str, type_: str) -> Callable[..., np.ndarray]:
    """Comparison of two arrays; of floats the ordered ones are false for a NaN, and "u" true."""
    if type_ in INTEGERS | BITS or name in ("eq", "lt", "le", "gt", "ge"):
        return ORDERED[name]
    if name == "ne":
        return lambda a, b: (a != b) & ~(np.isnan(a) | np.isnan(b))
    ordered = ORDERED[name.removesuffix("u")]
    return lambda a, b: ordered(a, b) | np.isnan(a) | np.isnan(b)


@form("setp")
def setp(instruction: Instruction, registers: Registers) -> Action:
    name, type_ = instruction.modifiers[0], type_of(instruction)
    floats = type_ in ("f32", "f16")
    known = name in ORDERED or (floats and name.removesuffix("u") in ORDERED)
    if len(instruction.modifiers) != 2 or not known or not (floats or type_ in INTEGERS | BITS):
        raise refuse(instruction)
    return computed(instruction, registers, (type_, type_), "pred", comparison(name, type_))


@form("selp")
def select(instruction: Instruction, registers: Registers) -> Action:
    type_ = type_of(instruction)
    _, first, second, chooser = instruction.operands
    a, b = registers.read(first, type_), registers.read(second, type_)
    p, d = registers.read(chooser, "pred"), registers.write(instruction.operands[0], type_)
    if instruction.modifiers != (type_,):
        raise refuse(instruction)
    if chooser.negated:
        a, b = b, a
    return lambda group: put(d, np.where(p, a, b), group)


@form("mov")
def mov(instruction: Instruction, registers: Registers) -> Action:
    type_ = type_of(instruction)
    if instruction.modifiers != (type_,):
        raise refuse(instruction)
    target, source = instruction.operands
    if target.kind == "vector" or source.kind == "vector":
        return _packed(target, source, type_, registers)
    return computed(instruction, registers, (type_,), type_, np.asarray)


def _packed(target: Operand, source: Operand, type_: str, registers: Registers) -> Action:
    """A register from parts, the lowest first, or into parts."""
    whole, parts = (source, target.parts) if target.kind == "vector" else (target, source.parts)
    part_type = f"b{8 * SIZES[type_] // len(parts)}"
    if whole is source:
        a = registers.read(whole, type_)
        outputs = [registers.write(part, part_type) for part in parts]

        def split(group: Group) -> None:
            pieces = np.array(a).view(DTYPES[part_type]).reshape(-1, len(parts))
            for i, output in enumerate(outputs):
                put(output, pieces[:, i], group)

        return split
    d = registers.write(whole, type_)
    inputs = [registers.read(part, part_type) for part in parts]
    return lambda group: put(d, np.stack(inputs, 1).reshape(-1).view(d.dtype), group)


# ---- conversions ------------------------------------------------------------------------------

NARROWING: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "bf16": to_bf16,
    "f16": lambda x: x.astype(np.float16),
}
WIDENING: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "bf16": from_bf16,
    "f16": lambda x: x.astype(np.float32),
}


def truncated(x: np.ndarray) -> np.ndarray:
    """Int32; beyond the range its end, and a NaN is 0."""
    ends = np.iinfo(np.int32)
    inside = np.clip(np.trunc(x.astype(np.float64)), ends.min, ends.max)
    return np.where(np.isnan(inside), 0.0, inside).astype(np.int32)


def saturated(x: np.ndarray) -> np.ndarray:
    """In [0, 1]; a NaN becomes 0."""
    return np.where(np.isnan(x), x.dtype.type(0), np.clip(x, 0, 1))


EXACT = {"rni.f32.f32": np.rint, "rzi.s32.f32": truncated, "sat.f32.f32": saturated}


def conversion(mode: str, target: str, source: str) -> Callable[[np.ndarray], np.ndarray] | None:
    """The function of a conversion; None for an unknown one."""
    from_integer, to_integer = source[0] in "us", target[0] in "us"
    if from_integer and ((to_integer and not mode) or (target == "f32" and mode == "rn")):
        return lambda x: x.astype(DTYPES[target])
    if mode == "rn" and source == "f32":
        return NARROWING.get(target)
    if not mode and target == "f32":
        return WIDENING.get(source)
    return EXACT.get(f"{mode}.{target}.{source}")


@form("cvt")
def cvt(instruction: Instruction, registers: Registers) -> Action:
    """The target register may be wider than its type."""
    *how, target, source = instruction.modifiers
    convert = conversion(".".join(how), target.removesuffix("x2"), source)
    if convert is None:
        raise refuse(instruction)
    if target.endswith("x2"):
        return _narrowed_pair(instruction, registers, convert)
    (a,) = sources(instruction, registers, (source,))
    write = registers.write_extended(instruction.operands[0], target)
    return lambda group: write(group.lanes, convert(a)[group.lanes])


def _narrowed_pair(
    instruction: Instruction, registers: Registers, narrow: Callable[[np.ndarray], np.ndarray]
) -> Action:
    """The first source becomes the high half."""

    def both(high: np.ndarray, low: np.ndarray) -> np.ndarray:
        pair = np.stack((narrow(low), narrow(high)), 1)
        return np.ascontiguousarray(pair).view(np.uint32)[:, 0]

    return computed(instruction, registers, ("f32", "f32"), "b32", both)
