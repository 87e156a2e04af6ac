"""Integer arithmetic."""

from __future__ import annotations

import numpy as np

from tests.ptx import floats
from tests.ptx.forms import Action, Modifiers, form, put, refuse, sources
from tests.ptx.lanes import DTYPES, Group, Registers
from tests.ptx.parse import SIZES, Instruction, UnknownForm

INTEGERS = {"u16", "s16", "u32", "s32", "u64", "s64"}
BITS = {"b16", "b32", "b64"}
WIDER = {"u16": "u32", "s16": "s32", "u32": "u64", "s32": "s64"}


def binary(instruction: Instruction, registers: Registers, type_: str, ufunc: np.ufunc) -> Action:
    a, b = sources(instruction, registers, (type_, type_))
    d = registers.write(instruction.operands[0], type_)
    return lambda group: ufunc(a, b, out=d, where=group.where)


@form("add", "sub")
def add(instruction: Instruction, registers: Registers) -> Action:
    modifiers = Modifiers(instruction)
    type_ = modifiers.type()
    if type_ not in INTEGERS | {"b32", "b64"}:
        return floats.add(instruction, registers)
    saturate = modifiers.take("sat")
    modifiers.done()
    if saturate:
        if type_ != "s32":
            raise refuse(instruction)
        sign = 1 if instruction.opcode == "add" else -1
        a, b = sources(instruction, registers, (type_, type_))
        d = registers.write(instruction.operands[0], type_)
        ends = np.iinfo(np.int32)
        return lambda group: put(
            d,
            np.clip(a.astype(np.int64) + sign * b.astype(np.int64), ends.min, ends.max).astype(
                np.int32
            ),
            group,
        )
    return binary(
        instruction, registers, type_, np.add if instruction.opcode == "add" else np.subtract
    )


def product(a: np.ndarray, b: np.ndarray, type_: str, part: str) -> np.ndarray:
    """a b: its low or high half, or all of it, in the wider type."""
    if part == "lo":
        return a * b
    if type_ in WIDER:
        wide = a.astype(DTYPES[WIDER[type_]]) * b.astype(DTYPES[WIDER[type_]])
        if part == "wide":
            return wide
        return (wide >> wide.dtype.type(8 * SIZES[type_])).astype(DTYPES[type_])
    if part == "wide":
        raise UnknownForm(f"mul.wide.{type_}")
    high = _high64(a.view(np.uint64), b.view(np.uint64))
    if type_ == "s64":
        zero = np.uint64(0)
        high = high - np.where(a < 0, b.view(np.uint64), zero)
        high = high - np.where(b < 0, a.view(np.uint64), zero)
    return high.view(DTYPES[type_])


def _high64(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    half, low = np.uint64(32), np.uint64(0xFFFFFFFF)
    a0, a1, b0, b1 = a & low, a >> half, b & low, b >> half
    middle = a1 * b0 + (a0 * b0 >> half)
    other = a0 * b1 + (middle & low)
    return a1 * b1 + (middle >> half) + (other >> half)


@form("mul", "mad")
def mul(instruction: Instruction, registers: Registers) -> Action:
    modifiers = Modifiers(instruction)
    type_ = modifiers.type()
    if type_ not in INTEGERS:
        return floats.mul(instruction, registers)
    part = modifiers.take("lo", "hi", "wide")
    modifiers.done()
    if not part:
        raise refuse(instruction)
    result = WIDER[type_] if part == "wide" else type_
    d = registers.write(instruction.operands[0], result)
    if instruction.opcode == "mul":
        a, b = sources(instruction, registers, (type_, type_))
        if part == "lo":
            return lambda group: np.multiply(a, b, out=d, where=group.where)
        return lambda group: put(d, product(a, b, type_, part), group)
    a, b, c = sources(instruction, registers, (type_, type_, result))
    return lambda group: np.add(product(a, b, type_, part), c, out=d, where=group.where)


@form("div", "rem")
def div(instruction: Instruction, registers: Registers) -> Action:
    modifiers = Modifiers(instruction)
    type_ = modifiers.type()
    if type_ not in INTEGERS:
        return floats.div(instruction, registers)
    modifiers.done()
    a, b = sources(instruction, registers, (type_, type_))
    d = registers.write(instruction.operands[0], type_)
    remainder = instruction.opcode == "rem"

    def divide(group: Group) -> None:
        """Toward zero. By zero the ISA leaves the result open: all ones here."""
        by = np.where(b == 0, b.dtype.type(1), b)
        quotient = a // by
        if a.dtype.kind == "i":
            quotient = quotient + ((quotient * by != a) & ((a < 0) != (by < 0)))
        value = a - quotient * by if remainder else quotient
        put(d, np.where(b == 0, ~b.dtype.type(0), value).astype(d.dtype), group)

    return divide


@form("min", "max")
def extreme(instruction: Instruction, registers: Registers) -> Action:
    modifiers = Modifiers(instruction)
    type_ = modifiers.type()
    if type_ not in INTEGERS:
        return floats.extreme(instruction, registers)
    modifiers.done()
    ufunc = np.minimum if instruction.opcode == "min" else np.maximum
    return binary(instruction, registers, type_, ufunc)


@form("neg", "abs")
def negate(instruction: Instruction, registers: Registers) -> Action:
    modifiers = Modifiers(instruction)
    type_ = modifiers.type()
    if type_ not in INTEGERS:
        return floats.negate(instruction, registers)
    modifiers.done()
    (a,) = sources(instruction, registers, (type_,))
    d = registers.write(instruction.operands[0], type_)
    ufunc = np.negative if instruction.opcode == "neg" else np.absolute
    return lambda group: ufunc(a, out=d, where=group.where)
