"""Comparisons, selections and moves."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from tests.ptx import floats
from tests.ptx.forms import Action, Modifiers, form, put, refuse, sources
from tests.ptx.integers import BITS, INTEGERS
from tests.ptx.lanes import DTYPES, Group, Registers
from tests.ptx.parse import SIZES, Instruction, Operand, UnknownForm

Binary = Callable[[np.ndarray, np.ndarray], np.ndarray]

ORDERED = {
    "eq": np.equal, "ne": np.not_equal, "lt": np.less, "le": np.less_equal, "gt": np.greater,
    "ge": np.greater_equal, "lo": np.less, "ls": np.less_equal, "hi": np.greater,
    "hs": np.greater_equal,
}  # fmt: skip


def comparison(name: str, type_: str) -> Binary:
    """Comparison of two arrays, as the ISA compares values of this type."""
    if type_ not in floats.FLOATS:
        if name not in ORDERED or (name in ("lo", "ls", "hi", "hs") and type_[0] == "s"):
            raise UnknownForm(f"comparison {name} of {type_}")
        return ORDERED[name]
    if name == "num":
        return lambda a, b: ~(np.isnan(a) | np.isnan(b))
    if name == "nan":
        return lambda a, b: np.isnan(a) | np.isnan(b)
    if name == "ne":  # ordered: false for a NaN
        return lambda a, b: (a != b) & ~(np.isnan(a) | np.isnan(b))
    if name in ("eq", "lt", "le", "gt", "ge"):
        return ORDERED[name]
    if name in ("equ", "neu", "ltu", "leu", "gtu", "geu"):
        ordered = ORDERED[name[:2]]
        return lambda a, b: ordered(a, b) | np.isnan(a) | np.isnan(b)
    raise UnknownForm(f"comparison {name}")


@form("setp", "set")
def setp(instruction: Instruction, registers: Registers) -> Action:
    modifiers = Modifiers(instruction)
    type_ = modifiers.type()
    result = "pred" if instruction.opcode == "setp" else modifiers.type()
    flush = bool(modifiers.take("ftz"))
    also = modifiers.take("and", "or", "xor")
    compare = comparison(modifiers.left.pop(0), type_)
    modifiers.done()
    if result not in ("pred", "u32", "s32"):
        raise refuse(instruction)
    first = instruction.operands[0]
    targets = first.parts if first.kind == "pair" else (first,)
    outputs = [registers.write(target, result) for target in targets]
    a, b = (floats.reader(registers, o, type_, flush) for o in instruction.operands[1:3])
    given = None
    if also:
        given = registers.read(instruction.operands[3], "pred")
    negated = bool(also) and instruction.operands[3].negated
    mix = {"and": np.logical_and, "or": np.logical_or, "xor": np.logical_xor}.get(also)
    if given is None and len(outputs) == 1 and result == "pred" and compare in ORDERED.values():
        x, y, p = a(), b(), outputs[0]
        if type_ in INTEGERS | BITS:
            return lambda group: compare(x, y, out=p, where=group.where)  # type: ignore[call-arg]

    def compared(group: Group) -> None:
        truth = compare(a(), b())
        values = [truth, ~truth]
        if mix is not None and given is not None:
            values = [mix(v, ~given if negated else given) for v in values]
        for output, value in zip(outputs, values, strict=False):
            if result != "pred":
                value = np.where(value, ~output.dtype.type(0), output.dtype.type(0))
            put(output, value, group)

    return compared


@form("selp", "slct")
def select(instruction: Instruction, registers: Registers) -> Action:
    modifiers = Modifiers(instruction)
    if instruction.opcode == "slct":
        by, type_ = modifiers.type(), modifiers.type()
        modifiers.done()
        if by not in ("s32", "f32"):
            raise refuse(instruction)
        a, b, c = sources(instruction, registers, (type_, type_, by))
        d = registers.write(instruction.operands[0], type_)
        return lambda group: put(d, np.where(c >= 0, a, b), group)
    type_ = modifiers.type()
    modifiers.done()
    _, first, second, chooser = instruction.operands
    a, b = registers.read(first, type_), registers.read(second, type_)
    p, negated = registers.read(chooser, "pred"), chooser.negated
    d = registers.write(instruction.operands[0], type_)
    if negated:
        a, b = b, a
    return lambda group: put(d, np.where(p, a, b), group)


@form("mov")
def mov(instruction: Instruction, registers: Registers) -> Action:
    modifiers = Modifiers(instruction)
    type_ = modifiers.type()
    modifiers.done()
    target, source = instruction.operands
    if target.kind == "vector" or source.kind == "vector":
        return _packed(target, source, type_, registers)
    a, d = registers.read(source, type_), registers.write(target, type_)
    if source.negated:
        raise refuse(instruction)
    return lambda group: put(d, a, group)


def _packed(target: Operand, source: Operand, type_: str, registers: Registers) -> Action:
    """A register from parts, the lowest first, or into parts."""
    whole, parts = (source, target.parts) if target.kind == "vector" else (target, source.parts)
    size = SIZES[type_] // len(parts)
    part_type = f"b{8 * size}"
    if part_type not in SIZES:
        raise UnknownForm(f"{len(parts)} parts of {type_}")
    if whole is source:
        a = registers.read(whole, type_)
        outputs = [registers.write(part, part_type) for part in parts]

        def split(group: Group) -> None:
            pieces = np.ascontiguousarray(a).view(DTYPES[part_type]).reshape(-1, len(parts))
            pieces = pieces.copy()
            for i, output in enumerate(outputs):
                put(output, pieces[:, i], group)

        return split
    d = registers.write(whole, type_)
    inputs = [registers.read(part, part_type) for part in parts]

    def joined(group: Group) -> None:
        put(d, np.stack(inputs, 1).reshape(-1).view(d.dtype), group)

    return joined
