"""Matrix instructions of a warp: ldmatrix, mma and wmma, by the fragment layouts of the PTX ISA.

A fragment layout is a table: for each register (or half of one) and lane, the row and the column
that it holds. Products are summed in float64 and rounded once, where the machine's order of
additions is its own.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from tests.ptx.access import Place, read_words, write_words
from tests.ptx.forms import Action, Modifiers, form, refuse
from tests.ptx.lanes import Group, Registers
from tests.ptx.layout import WARP, Trap
from tests.ptx.parse import Instruction, Operand
from tests.ptx.rounding import from_bf16

LANE = np.arange(WARP)
GROUP, IN_GROUP = LANE // 4, LANE % 4  # of the ISA: groupID and threadID_in_group


def layout(pairs: bool, entries: list[tuple[int, int, bool]]) -> np.ndarray:
    """(registers x elements of each, 32, 2) rows and columns.

    entries: for each register the row and column that it adds, and whether the lane's group numbers
    the rows (of A and C) or the columns (of B). pairs: a register holds two neighbours of k.
    """
    places = []
    for row, column, by_rows in entries:
        for half in range(2 if pairs else 1):
            inner = (IN_GROUP * 2 + half) if pairs else IN_GROUP
            if by_rows:
                places.append(np.stack((row + GROUP, column + inner), 1))
            else:
                places.append(np.stack((row + inner, column + GROUP), 1))
    return np.array(places)


# (m, n, k): the tables of A, B; C and D are the same for all of m16n8.
C16X8 = layout(True, [(0, 0, True), (8, 0, True)])
HALVES = {
    16: (
        layout(True, [(0, 0, True), (8, 0, True), (0, 8, True), (8, 8, True)]),
        layout(True, [(0, 0, False), (8, 0, False)]),
    ),
    8: (layout(True, [(0, 0, True), (8, 0, True)]), layout(True, [(0, 0, False)])),
}
SINGLES = {
    8: (
        layout(False, [(0, 0, True), (8, 0, True), (0, 4, True), (8, 4, True)]),
        layout(False, [(0, 0, False), (4, 0, False)]),
    ),
    4: (layout(False, [(0, 0, True), (8, 0, True)]), layout(False, [(0, 0, False)])),
}
# The layout of a wmma fragment is nobody's business; this one is row after row.
WMMA = np.stack(np.divmod(LANE[None] * 8 + np.arange(8)[:, None], 16), 2)


def halves(registers: list[np.ndarray], warps: np.ndarray) -> np.ndarray:
    """(warps, 2 registers, 32) 16-bit halves, low ones first."""
    words = np.stack(registers).reshape(len(registers), -1, WARP)[:, warps]
    each = np.ascontiguousarray(words)[..., None].view(np.uint16)  # (registers, warps, 32, 2)
    return each.transpose(1, 0, 3, 2).reshape(len(warps), -1, WARP)


def singles(registers: list[np.ndarray], warps: np.ndarray) -> np.ndarray:
    return np.stack(registers).reshape(len(registers), -1, WARP)[:, warps].swapaxes(0, 1)


def matrix(elements: np.ndarray, table: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """(warps, rows, columns) from the (warps, elements, 32) of a fragment."""
    result = np.empty((len(elements), *shape), elements.dtype)
    result[:, table[..., 0], table[..., 1]] = elements
    return result


def decoded(type_: str) -> Callable[[list[np.ndarray], np.ndarray], np.ndarray]:
    """From registers to elements in float64."""
    if type_ == "bf16":
        return lambda r, w: from_bf16(halves(r, w)).astype(np.float64)
    if type_ == "f16":
        return lambda r, w: halves(r, w).view(np.float16).astype(np.float64)
    if type_ == "tf32":  # the machine does not look at the low 13 bits
        mask = np.uint32(0xFFFFE000)
        return lambda r, w: (singles(r, w) & mask).view(np.float32).astype(np.float64)
    return lambda r, w: singles(r, w).view(np.float32).astype(np.float64)


def _read_all(registers: Registers, operand: Operand) -> list[np.ndarray]:
    return [registers.read(part, "b32") for part in operand.parts]


def _write_all(registers: Registers, operand: Operand) -> list[np.ndarray]:
    return [registers.write(part, "b32") for part in operand.parts]


def _scatter(outputs: list[np.ndarray], words: np.ndarray, warps: np.ndarray) -> None:
    """words: (warps, registers, 32)."""
    for i, output in enumerate(outputs):
        output.reshape(-1, WARP)[warps] = words[:, i]


@form("mma")
def mma(instruction: Instruction, registers: Registers) -> Action:
    modifiers = Modifiers(instruction)
    c_type, b_type, a_type, d_type = (modifiers.type() for _ in range(4))
    orders = modifiers.left[-2:] == ["row", "col"]
    shape = modifiers.left[2] if len(modifiers.left) > 2 else ""
    tables = SINGLES if a_type == "tf32" else HALVES
    k = int(shape.removeprefix("m16n8k")) if shape.startswith("m16n8k") else 0
    known = modifiers.left[:2] == ["sync", "aligned"] and orders and len(modifiers.left) == 5
    if not known or a_type != b_type or a_type not in ("bf16", "f16", "tf32") or k not in tables:
        raise refuse(instruction)
    if c_type != d_type or (c_type != "f32" and (c_type, a_type) != ("f16", "f16")):
        raise refuse(instruction)
    a, b, c = (_read_all(registers, operand) for operand in instruction.operands[1:])
    d = _write_all(registers, instruction.operands[0])
    table_a, table_b = tables[k]
    per = 1 if a_type == "tf32" else 2
    half = c_type == "f16"
    if (len(a) * per, len(b) * per, len(c), len(d)) != (
        len(table_a), len(table_b), *(2 if half else 4,) * 2,
    ):  # fmt: skip
        raise refuse(instruction)
    decode, decode_c = decoded(a_type), decoded(c_type)

    def run(group: Group) -> None:
        warps = group.warps
        left = matrix(decode(a, warps), table_a, (16, k))
        right = matrix(decode(b, warps), table_b, (k, 8))
        total = left @ right + matrix(decode_c(c, warps), C16X8, (16, 8))
        elements = total[:, C16X8[..., 0], C16X8[..., 1]]  # (warps, 4, 32)
        if half:
            low = elements.astype(np.float16).view(np.uint16).reshape(len(warps), 2, 2, WARP)
            words = low[:, :, 0].astype(np.uint32) | low[:, :, 1].astype(np.uint32) << np.uint32(16)
        else:
            words = elements.astype(np.float32).view(np.uint32)
        _scatter(d, words, warps)

    return run


@form("ldmatrix")
def ldmatrix(instruction: Instruction, registers: Registers) -> Action:
    """8x8 matrices of 16 bits; lane 8 j + i has the address of row i of matrix j."""
    modifiers = Modifiers(instruction)
    known = modifiers.type() == "b16" and modifiers.take("sync") and modifiers.take("aligned")
    count = int((modifiers.take("x1", "x2", "x4") or "x0")[1:])
    turned = bool(modifiers.take("trans"))
    known = known and modifiers.take("m8n8") and modifiers.take("shared", "shared::cta")
    modifiers.done()
    target, address = instruction.operands
    d = _write_all(registers, target)
    if not known or len(d) != count:
        raise refuse(instruction)
    place = Place(address, "shared", 16, 16, registers)

    def run(group: Group) -> None:
        warps = group.warps
        used = np.zeros(registers.count, bool)
        used.reshape(-1, WARP)[warps, : 8 * count] = True
        addressed = Group(used)
        index = place(addressed)
        quarters = [read_words(place, index + 4 * i, 4, addressed) for i in range(4)]
        rows = np.stack(quarters, 1).reshape(len(warps), count, 8, 4)
        if turned:
            elements = rows.view(np.uint16).swapaxes(2, 3)  # (warps, count, 8, 8)
            rows = np.ascontiguousarray(elements).view(np.uint32)
        _scatter(d, rows.reshape(len(warps), count, WARP), warps)

    return run


@form("wmma")
def wmma(instruction: Instruction, registers: Registers) -> Action:
    """m16n16k16 of bfloat16 with sums in float32, the forms of nvcc's nvcuda::wmma."""
    modifiers = instruction.modifiers
    if modifiers[0] == "mma":
        if ".".join(modifiers[1:]) != "sync.aligned.row.row.m16n16k16.f32.bf16.bf16.f32":
            raise refuse(instruction)
        return _wmma_product(instruction, registers)
    action, which, *rest = modifiers
    if rest[:4] != ["sync", "aligned", "row", "m16n16k16"] or len(rest) not in (5, 6):
        raise refuse(instruction)
    space, type_ = rest[4] if len(rest) == 6 else "", rest[-1]
    if (action, which, type_) not in {
        ("load", "a", "bf16"), ("load", "b", "bf16"), ("load", "c", "f32"), ("store", "d", "f32"),
    }:  # fmt: skip
        raise refuse(instruction)
    return _wmma_access(instruction, registers, space, type_)


def _wmma_access(instruction: Instruction, registers: Registers, space: str, type_: str) -> Action:
    """Each lane of WMMA moves its eight neighbours of a row."""
    load = instruction.modifiers[0] == "load"
    fragment, address = instruction.operands[:2] if load else instruction.operands[1::-1]
    stride = registers.read(instruction.operands[2], "u32")
    values = (_write_all if load else _read_all)(registers, fragment)
    size = 2 if type_ == "bf16" else 4
    if len(values) != 8 * size // 4:
        raise refuse(instruction)
    place = Place(address, space, 4, 32, registers)

    def run(group: Group) -> None:
        warps = group.warps
        index, steps = place(group), stride[group.lanes].astype(np.int64)
        if (steps * size % 16).any():
            raise Trap(f"a stride of {int(steps[0])} elements is not a multiple of 16 bytes")
        index = np.repeat(index.reshape(-1, WARP)[:, :1], WARP, 1)
        steps = steps.reshape(-1, WARP)
        at = (index + (WMMA[0, :, 0] * steps + WMMA[0, :, 1]) * size).reshape(-1)
        for i, value in enumerate(values):
            if load:
                words = read_words(place, at + 4 * i, 4, group)
                value.reshape(-1, WARP)[warps] = words.reshape(-1, WARP)
            else:
                write_words(place, at + 4 * i, 4, value[group.lanes], group)

    return run


def _wmma_product(instruction: Instruction, registers: Registers) -> Action:
    d = _write_all(registers, instruction.operands[0])
    a, b, c = (_read_all(registers, operand) for operand in instruction.operands[1:])
    if [len(x) for x in (d, a, b, c)] != [8, 4, 4, 8]:
        raise refuse(instruction)
    decode, decode_c = decoded("bf16"), decoded("f32")

    def run(group: Group) -> None:
        warps = group.warps
        left = matrix(decode(a, warps), WMMA, (16, 16))
        right = matrix(decode(b, warps), WMMA, (16, 16))
        total = left @ right + matrix(decode_c(c, warps), WMMA, (16, 16))
        words = total[:, WMMA[..., 0], WMMA[..., 1]].astype(np.float32).view(np.uint32)
        _scatter(d, words, warps)

    return run
