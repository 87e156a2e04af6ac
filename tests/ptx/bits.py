"""Logic, shifts, bit fields and permutations of bytes."""

from __future__ import annotations

import numpy as np

from tests.ptx.forms import Action, Modifiers, form, put, refuse, sources
from tests.ptx.integers import BITS, INTEGERS, binary
from tests.ptx.lanes import Group, Registers
from tests.ptx.parse import SIZES, Instruction


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
        value = pair << by >> np.uint64(32) if way == "l" else pair >> by
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
