"""Instructions of a whole warp: shuffles, ldmatrix and mma, by the fragment layouts of the PTX ISA.

A fragment layout is a table: the row and the column of each number of a register, by lane. Products
are summed in float64 and rounded once, where the machine's order of additions is its own.
"""

from __future__ import annotations

import numpy as np

from tests.ptx.access import Place, read_words
from tests.ptx.arithmetic import from_bf16
from tests.ptx.lanes import Action, Group, Modifiers, Registers, form, put, refuse
from tests.ptx.memory import WARP, Trap
from tests.ptx.parse import Instruction, Operand

LANE = np.arange(WARP)
GROUP, IN_GROUP = LANE // 4, LANE % 4  # of the ISA: groupID and threadID_in_group


def layout(*corners: tuple[int, int], columns: bool = False) -> np.ndarray:
    """(numbers of a lane, 32, 2) rows and columns of m16n8k16.

    corners: for each register the place that it adds to its lane's. A register has two neighbours
    along k; in C, two registers have them. columns: the lane's group numbers the columns, as in B.
    """
    places = []
    for row, column in corners:
        for half in range(2):
            inner = IN_GROUP * 2 + half
            lane = (inner, GROUP) if columns else (GROUP, inner)
            places.append(np.stack((row + lane[0], column + lane[1]), 1))
    return np.array(places)


A = layout((0, 0), (8, 0), (0, 8), (8, 8))
B = layout((0, 0), (8, 0), columns=True)
C = layout((0, 0), (8, 0))


def halves(registers: list[np.ndarray], warps: np.ndarray, type_: str) -> np.ndarray:
    """(warps, 2 registers, 32) numbers of 16 bits in float64, low halves first."""
    words = np.stack(registers).reshape(len(registers), -1, WARP)[:, warps]
    each = np.ascontiguousarray(words)[..., None].view(np.uint16)  # (registers, warps, 32, 2)
    bits = each.transpose(1, 0, 3, 2).reshape(len(warps), -1, WARP)
    return (from_bf16(bits) if type_ == "bf16" else bits.view(np.float16)).astype(np.float64)


def singles(registers: list[np.ndarray], warps: np.ndarray) -> np.ndarray:
    """(warps, registers, 32) of float32 in float64."""
    words = np.stack(registers).reshape(len(registers), -1, WARP)[:, warps]
    return words.swapaxes(0, 1).view(np.float32).astype(np.float64)


def matrix(elements: np.ndarray, table: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """(warps, rows, columns) from the (warps, elements, 32) of a fragment."""
    result = np.empty((len(elements), *shape))
    result[:, table[..., 0], table[..., 1]] = elements
    return result


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
    *shape, d_type, a_type, b_type, c_type = instruction.modifiers
    types = (d_type, c_type) == ("f32", "f32") and a_type == b_type and a_type in ("bf16", "f16")
    if shape != ["sync", "aligned", "m16n8k16", "row", "col"] or not types:
        raise refuse(instruction)
    a, b, c = (_read_all(registers, operand) for operand in instruction.operands[1:])
    d = _write_all(registers, instruction.operands[0])

    def run(group: Group) -> None:
        warps = group.warps
        left = matrix(halves(a, warps, a_type), A, (16, 16))
        right = matrix(halves(b, warps, a_type), B, (16, 8))
        total = left @ right + matrix(singles(c, warps), C, (16, 8))
        elements = total[:, C[..., 0], C[..., 1]]  # (warps, 4, 32)
        _scatter(d, elements.astype(np.float32).view(np.uint32), warps)

    return run


@form("ldmatrix")
def ldmatrix(instruction: Instruction, registers: Registers) -> Action:
    """8x8 matrices of 16 bits; lane 8 j + i has the address of row i of matrix j."""
    modifiers = Modifiers(instruction)
    known = modifiers.type() == "b16" and modifiers.take("sync") and modifiers.take("aligned")
    count = int((modifiers.take("x1", "x2", "x4") or "x0")[1:])
    turned = bool(modifiers.take("trans"))
    known = known and modifiers.take("m8n8") and modifiers.take("shared")
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


def check_members(members: np.ndarray, group: Group) -> None:
    """All lanes that the mask names must be here, and name themselves."""
    mask = np.zeros(len(members), bool)
    mask[group.lanes] = True
    here = mask.reshape(-1, WARP)
    bits = (here * (np.uint64(1) << np.arange(WARP, dtype=np.uint64))).sum(1)
    named = members.reshape(-1, WARP).astype(np.uint64)
    wrong = here & (named != bits[:, None])
    if wrong.any():
        row, lane = (int(i[0]) for i in np.nonzero(wrong))
        raise Trap(
            f"warp {row} has lanes {int(bits[row]):#x} here; lane {lane} names "
            f"{int(named[row, lane]):#x}"
        )


def shuffle_sources(mode: str, by: np.ndarray, clamp: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The lane of its warp that each lane takes from, and whether it is in range."""
    lane = np.arange(len(by)) % WARP
    by, clamp = by.astype(np.int64), clamp.astype(np.int64)
    segment, bound = clamp >> 8 & 31, clamp & 31
    by = by & 31
    source = lane ^ by if mode == "bfly" else (lane & segment) | (by & ~segment)
    inside = source <= (lane & segment) | (bound & ~segment)
    return np.where(inside, source, lane), inside


@form("shfl")
def shfl(instruction: Instruction, registers: Registers) -> Action:
    modifiers = Modifiers(instruction)
    type_ = modifiers.type()
    mode = modifiers.take("bfly", "idx")
    if not modifiers.take("sync") or type_ != "b32" or not mode:
        raise refuse(instruction)
    modifiers.done()
    target, a, by, clamp, members = instruction.operands
    targets = target.parts if target.kind == "pair" else (target,)
    d = registers.write(targets[0], "b32")
    p = registers.write(targets[1], "pred") if len(targets) > 1 else None
    value, step, bound, names = (registers.read(o, "u32") for o in (a, by, clamp, members))

    def run(group: Group) -> None:
        check_members(names, group)
        source, inside = shuffle_sources(mode, step, bound)
        at = np.arange(len(source)) // WARP * WARP + source
        here = np.zeros(len(at), bool)
        here[group.lanes] = True
        if not here[at[here]].all():
            raise Trap("a shuffle from a lane that is not in it")
        put(d, value[at], group)
        if p is not None:
            put(p, inside, group)

    return run


@form("bar")
def warp_barrier(instruction: Instruction, registers: Registers) -> Action:
    """Lanes of a warp that run together have met already; all that are named must be here."""
    if instruction.modifiers != ("warp", "sync"):
        raise refuse(instruction)
    names = registers.read(instruction.operands[0], "u32")
    return lambda group: check_members(names, group)
