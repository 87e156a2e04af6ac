"""Integer, logic, shift, bit-field and comparison instructions."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from tests.ptx import floats
from tests.ptx.forms import Action, Modifiers, form, put, refuse, sources
from tests.ptx.lanes import DTYPES, Group, Registers
from tests.ptx.parse import SIZES, Instruction, Operand, UnknownForm

INTEGERS = {"u16", "s16", "u32", "s32", "u64", "s64"}
BITS = {"b16", "b32", "b64"}
WIDER = {"u16": "u32", "s16": "s32", "u32": "u64", "s32": "s64"}
Binary = Callable[[np.ndarray, np.ndarray], np.ndarray]


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


@form("and", "or", "xor", "not", "cnot")
def logic(instruction: Instruction, registers: Registers) -> Action:
    modifiers = Modifiers(instruction)
    type_ = modifiers.type()
    modifiers.done()
    if type_ not in BITS | {"pred"}:
        raise refuse(instruction)
    if instruction.opcode in ("not", "cnot"):
        (a,) = sources(instruction, registers, (type_,))
        d = registers.write(instruction.operands[0], type_)
        if instruction.opcode == "cnot":
            return lambda group: put(d, (a == 0).astype(d.dtype), group)
        return lambda group: np.invert(a, out=d, where=group.where)
    names = {"and": np.bitwise_and, "or": np.bitwise_or, "xor": np.bitwise_xor}
    return binary(instruction, registers, type_, names[instruction.opcode])


@form("shl", "shr")
def shift(instruction: Instruction, registers: Registers) -> Action:
    """By the width or more, all bits leave."""
    modifiers = Modifiers(instruction)
    type_ = modifiers.type()
    modifiers.done()
    if type_ not in INTEGERS | BITS:
        raise refuse(instruction)
    a, by = sources(instruction, registers, (type_, "u32"))
    d = registers.write(instruction.operands[0], type_)
    width = 8 * SIZES[type_]
    ufunc = np.left_shift if instruction.opcode == "shl" else np.right_shift
    if instruction.operands[2].kind == "integer" and instruction.operands[2].value < width:
        fixed = np.full(registers.count, instruction.operands[2].value, a.dtype)
        return lambda group: ufunc(a, fixed, out=d, where=group.where)

    def shifted(group: Group) -> None:
        inside = ufunc(a, np.minimum(by, width - 1).astype(a.dtype))
        filling = a < 0 if a.dtype.kind == "i" and ufunc is np.right_shift else False
        beyond = np.where(filling, a.dtype.type(0) - a.dtype.type(1), a.dtype.type(0))
        put(d, np.where(by < width, inside, beyond), group)

    return shifted


@form("shf")
def funnel(instruction: Instruction, registers: Registers) -> Action:
    """The 64 bits of b:a, shifted; the high half if left, the low half if right."""
    modifiers = Modifiers(instruction)
    type_, mode, way = modifiers.type(), modifiers.take("wrap", "clamp"), modifiers.take("l", "r")
    modifiers.done()
    if type_ != "b32" or not mode or not way:
        raise refuse(instruction)
    a, b, c = sources(instruction, registers, ("u32", "u32", "u32"))
    d = registers.write(instruction.operands[0], "u32")

    def shifted(group: Group) -> None:
        by = (c & np.uint32(31) if mode == "wrap" else np.minimum(c, 32)).astype(np.uint64)
        pair = b.astype(np.uint64) << np.uint64(32) | a
        if way == "l":
            value = (pair << by) >> np.uint64(32)
        else:
            value = pair >> by
        put(d, value.astype(np.uint32), group)

    return shifted


def table(a: np.ndarray, b: np.ndarray, c: np.ndarray, entries: int) -> np.ndarray:
    """Bit by bit, the entry that the bits of a, b, c number: the function of lop3."""
    result = np.zeros_like(a)
    for i in range(8):
        if entries >> i & 1:
            term = a if i & 4 else ~a
            term = term & (b if i & 2 else ~b)
            result |= term & (c if i & 1 else ~c)
    return result


@form("lop3")
def lop3(instruction: Instruction, registers: Registers) -> Action:
    modifiers = Modifiers(instruction)
    type_ = modifiers.type()
    modifiers.done()
    if type_ != "b32" or len(instruction.operands) != 5:
        raise refuse(instruction)
    a, b, c, _ = sources(instruction, registers, ("b32",) * 4)
    entries = instruction.operands[4].value & 0xFF
    d = registers.write(instruction.operands[0], "b32")
    return lambda group: put(d, table(a, b, c, entries), group)


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


PRMT_MODES: dict[str, list[int]] = {  # the selectors that a mode stands for, by the low two bits
    "f4e": [0x3210, 0x4321, 0x5432, 0x6543],
    "b4e": [0x5670, 0x6701, 0x7012, 0x0123],
    "rc8": [0x0000, 0x1111, 0x2222, 0x3333],
    "ecl": [0x3210, 0x3211, 0x3222, 0x3333],
    "ecr": [0x0000, 0x1110, 0x2210, 0x3210],
    "rc16": [0x1010, 0x3232, 0x1010, 0x3232],
}


@form("prmt")
def prmt(instruction: Instruction, registers: Registers) -> Action:
    modifiers = Modifiers(instruction)
    mode = modifiers.take(*PRMT_MODES)
    if modifiers.type() != "b32":
        raise refuse(instruction)
    modifiers.done()
    a, b, c = sources(instruction, registers, ("u32", "u32", "u32"))
    d = registers.write(instruction.operands[0], "u32")
    if not mode:
        return lambda group: put(d, permuted(a, b, c), group)
    selectors = np.array(PRMT_MODES[mode], np.uint32)
    return lambda group: put(d, permuted(a, b, selectors[c & np.uint32(3)]), group)


def extracted(a: np.ndarray, position: np.ndarray, length: np.ndarray) -> np.ndarray:
    """The field of `length` bits at `position`; of a signed type its sign fills the rest."""
    width = 8 * a.itemsize
    unsigned = np.dtype(f"u{a.itemsize}").type
    p = (position & np.uint32(255)).astype(np.int64)
    n = (length & np.uint32(255)).astype(np.int64)
    bits = a.view(unsigned)
    field = np.where(p < width, bits >> np.minimum(p, width - 1).astype(unsigned), unsigned(0))
    ones = np.where(
        n < width, (unsigned(1) << np.minimum(n, width - 1).astype(unsigned)) - unsigned(1),
        ~unsigned(0),
    )  # fmt: skip
    field = field & ones
    if a.dtype.kind == "u":
        return field
    at = np.clip(np.minimum(p + n - 1, width - 1), 0, width - 1).astype(unsigned)
    negative = ((bits >> at) & unsigned(1) != 0) & (n > 0)
    beyond = np.minimum(n, np.maximum(width - p, 0))  # from this bit on, the sign
    sign = np.where(beyond < width, ~unsigned(0) << np.minimum(beyond, width - 1).astype(unsigned),
                    unsigned(0))  # fmt: skip
    return np.where(negative, field | sign, field).astype(unsigned).view(a.dtype)


@form("bfe")
def bfe(instruction: Instruction, registers: Registers) -> Action:
    modifiers = Modifiers(instruction)
    type_ = modifiers.type()
    modifiers.done()
    if type_ not in ("u32", "s32", "u64", "s64"):
        raise refuse(instruction)
    a, position, length = sources(instruction, registers, (type_, "u32", "u32"))
    d = registers.write(instruction.operands[0], type_)
    return lambda group: put(d, extracted(a, position, length), group)


def inserted(a: np.ndarray, b: np.ndarray, position: np.ndarray, length: np.ndarray) -> np.ndarray:
    """The low bits of a in place of those of b."""
    width = 8 * a.itemsize
    unsigned = a.dtype.type
    p = (position & np.uint32(255)).astype(np.int64)
    n = (length & np.uint32(255)).astype(np.int64)
    ones = np.where(
        n < width, (unsigned(1) << np.minimum(n, width - 1).astype(unsigned)) - unsigned(1),
        ~unsigned(0),
    )  # fmt: skip
    by = np.minimum(p, width - 1).astype(unsigned)
    mask = np.where(p < width, ones << by, unsigned(0))
    return (b & ~mask) | ((a << by) & mask)


@form("bfi")
def bfi(instruction: Instruction, registers: Registers) -> Action:
    modifiers = Modifiers(instruction)
    type_ = modifiers.type()
    modifiers.done()
    if type_ not in ("b32", "b64"):
        raise refuse(instruction)
    a, b, position, length = sources(instruction, registers, (type_, type_, "u32", "u32"))
    d = registers.write(instruction.operands[0], type_)
    return lambda group: put(d, inserted(a, b, position, length), group)


@form("popc", "clz", "brev", "bfind")
def count(instruction: Instruction, registers: Registers) -> Action:
    modifiers = Modifiers(instruction)
    type_ = modifiers.type()
    modifiers.done()
    bits = type_ in ("b32", "b64")
    if not bits and not (instruction.opcode == "bfind" and type_ in ("u32", "u64")):
        raise refuse(instruction)
    (a,) = sources(instruction, registers, (type_,))
    d = registers.write(instruction.operands[0], type_ if instruction.opcode == "brev" else "u32")
    width = 8 * SIZES[type_]

    def counted(group: Group) -> None:
        each = np.unpackbits(
            np.ascontiguousarray(a).view(np.uint8).reshape(len(a), -1)[:, ::-1], axis=1
        )
        if instruction.opcode == "popc":
            value = each.sum(1)
        elif instruction.opcode == "brev":
            turned = np.packbits(each[:, ::-1], axis=1)[:, ::-1]
            value = np.ascontiguousarray(turned).view(d.dtype)[:, 0]
        else:
            leading = np.where(each.any(1), each.argmax(1), width)
            value = leading if instruction.opcode == "clz" else width - 1 - leading
        put(d, value.astype(d.dtype), group)

    return counted


ORDERED = {
    "eq": np.equal, "ne": np.not_equal, "lt": np.less, "le": np.less_equal, "gt": np.greater,
    "ge": np.greater_equal, "lo": np.less, "ls": np.less_equal, "hi": np.greater,
    "hs": np.greater_equal,
}  # fmt: skip


def comparison(name: str, type_: str) -> Binary:
    """Of two arrays, as the ISA compares values of this type."""
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
