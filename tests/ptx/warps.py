"""Loads, stores and copies; and shuffles, ldmatrix and mma, by the fragment layouts of the PTX ISA.

A fragment layout is a table: the row and the column of each number of a register, by lane. Products
are summed in float64 and rounded once, where the machine's order of additions is its own.
"""

from __future__ import annotations

import numpy as np

from tests.ptx.arithmetic import from_bf16
from tests.ptx.lanes import DTYPES, Action, Group, Registers, form, put
from tests.ptx.memory import WARP, WORDS, Trap
from tests.ptx.parse import SIZES, Instruction, Operand, UnknownForm

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


def matrix(
    registers: list[np.ndarray], warps: np.ndarray, type_: str, table: np.ndarray, *shape: int
) -> np.ndarray:
    """(warps, rows, columns) in float64 from the registers of a fragment, low halves first."""
    words = np.stack(registers, 1).reshape(-1, WARP, len(registers))[warps]
    if type_ == "bf16":
        numbers = from_bf16(words.view(np.uint16))
    else:
        numbers = words.view(np.float16 if type_ == "f16" else np.float32)
    result = np.empty((len(warps), *shape))
    result[:, table[..., 0], table[..., 1]] = numbers.swapaxes(1, 2)
    return result


def _read_all(registers: Registers, operand: Operand) -> list[np.ndarray]:
    return [registers.read(part, "b32") for part in operand.parts]


def _scatter(outputs: list[np.ndarray], words: np.ndarray, warps: np.ndarray) -> None:
    """words: (warps, registers, 32)."""
    for i, output in enumerate(outputs):
        output.reshape(-1, WARP)[warps] = words[:, i]


@form(r"mma\.sync\.aligned\.m16n8k16\.row\.col\.f32\.(bf16\.bf16|f16\.f16)\.f32")
def mma(instruction: Instruction, registers: Registers, types: str) -> Action:
    d, a, b, c = (_read_all(registers, operand) for operand in instruction.operands)
    type_ = types.partition(".")[0]

    def run(group: Group) -> None:
        warps = group.warps
        total = matrix(a, warps, type_, A, 16, 16) @ matrix(b, warps, type_, B, 16, 8)
        total += matrix(c, warps, "f32", C, 16, 8)
        elements = total[:, C[..., 0], C[..., 1]]  # (warps, 4, 32)
        _scatter(d, elements.astype(np.float32).view(np.uint32), warps)

    return run


@form(r"ldmatrix\.sync\.aligned\.m8n8\.x[124](\.trans)?\.shared\.b16")
def ldmatrix(instruction: Instruction, registers: Registers, turned: str) -> Action:
    """8x8 matrices of 16 bits; lane 8 j + i has the address of row i of matrix j."""
    d = _read_all(registers, instruction.operands[0])
    place = registers.place(instruction.operands[1], "shared", 16)

    def run(group: Group) -> None:
        warps = group.warps
        used = np.zeros(registers.count, bool)
        used.reshape(-1, WARP)[warps, : 8 * len(d)] = True
        addressed = Group(used)
        index = place(addressed)
        load = registers.memory.load
        quarters = [load(index + 4 * i, 4, addressed.lanes) for i in range(4)]
        rows = np.stack(quarters, 1).reshape(len(warps), len(d), 8, 4)
        if turned:
            elements = rows.view(np.uint16).swapaxes(2, 3)  # (warps, matrices, 8, 8)
            rows = np.ascontiguousarray(elements).view(np.uint32)
        _scatter(d, rows.reshape(len(warps), len(d), WARP), warps)

    return run


def check_members(members: np.ndarray, group: Group) -> None:
    """All lanes that the mask names must be here, and name themselves."""
    here = np.zeros(len(members), bool)
    here[group.lanes] = True
    here = here.reshape(-1, WARP)
    bits = np.packbits(here, axis=1, bitorder="little").view(np.uint32)  # (warps, 1)
    named = members.reshape(-1, WARP)
    wrong = here & (named != bits)
    if wrong.any():
        row, lane = (int(i[0]) for i in np.nonzero(wrong))
        raise Trap(
            f"warp {row} has lanes {int(bits[row, 0]):#x} here; lane {lane} names "
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


@form(r"shfl\.sync\.(bfly|idx)\.b32")
def shfl(instruction: Instruction, registers: Registers, mode: str) -> Action:
    target, *sources = instruction.operands
    value, step, bound, names = (registers.read(operand, "u32") for operand in sources)
    first, *second = target.parts or (target,)
    d = registers.write(first, "b32")
    predicates = [registers.write(operand, "pred") for operand in second]

    def run(group: Group) -> None:
        check_members(names, group)
        source, inside = shuffle_sources(mode, step, bound)
        at = np.arange(len(source)) // WARP * WARP + source
        if not np.isin(at[group.lanes], group.lanes).all():
            raise Trap("a shuffle from a lane that is not in it")
        put(d, value[at], group)
        for predicate in predicates:
            put(predicate, inside, group)

    return run


@form(r"bar\.warp\.sync")
def warp_barrier(instruction: Instruction, registers: Registers) -> Action:
    """Lanes of a warp that run together have met already; all that are named must be here."""
    names = registers.read(instruction.operands[0], "u32")
    return lambda group: check_members(names, group)


ACCESS = r"(?:\.(global|shared|local|param))?(?:\.(?:nc|ca|L1::evict_first))*(?:\.v[24])?\.(\w+)"
PRIVATE = ("local", "param")  # spaces that no two lanes share


@form(rf"ld{ACCESS}")
def load(instruction: Instruction, registers: Registers, space: str, type_: str) -> Action:
    target, address = instruction.operands
    size, dtype, memory = SIZES[type_], np.dtype(DTYPES[type_]), registers.memory
    writes = [registers.write_extended(part, type_) for part in target.parts or (target,)]
    if space == "param" and address.name in registers.formal:
        formal = registers.formal[address.name].view(dtype)
        first = address.value // size

        def load_formal(group: Group) -> None:
            for i, write in enumerate(writes):
                write(group.lanes, formal[group.lanes, first + i])

        return load_formal
    place = registers.place(address, space, size * len(writes))

    def run(group: Group) -> None:
        index, lanes = place(group), None if space in PRIVATE else group.lanes
        for i, write in enumerate(writes):
            write(group.lanes, memory.load(index + i * size, size, lanes).view(dtype))

    return run


@form(rf"st{ACCESS}")
def store(instruction: Instruction, registers: Registers, space: str, type_: str) -> Action:
    address, source = instruction.operands
    size, word, memory = SIZES[type_], WORDS[SIZES[type_]], registers.memory
    values = [registers.read(part, type_).view(word) for part in source.parts or (source,)]
    if space == "param":
        formal = registers.formal[address.name].view(word)
        first = address.value // size

        def store_formal(group: Group) -> None:
            for i, value in enumerate(values):
                formal[group.lanes, first + i] = value[group.lanes]

        return store_formal
    place = registers.place(address, space, size * len(values))

    def run(group: Group) -> None:
        index, lanes = place(group), None if space in PRIVATE else group.lanes
        for i, value in enumerate(values):
            memory.store(index + i * size, size, value[group.lanes], lanes)

    return run


@form(r"cp\.async\.commit_group")
def commit(instruction: Instruction, registers: Registers) -> Action:
    def run(group: Group) -> None:
        registers.copies.committed[group.lanes] += 1

    return run


@form(r"cp\.async\.wait_group")
def wait(instruction: Instruction, registers: Registers) -> Action:
    most = instruction.operands[0].value
    return lambda group: registers.copies.wait(most, group.lanes)


@form(r"cp\.async\.c[ag]\.shared\.global")
def copy(instruction: Instruction, registers: Registers) -> Action:
    """A lane copies all its bytes, or writes zeros and reads nothing."""
    to, source, count, *given = instruction.operands
    size, memory = count.value, registers.memory
    target, origin = registers.place(to, "shared", size), registers.place(source, "global", size)
    counts = registers.read(given[0] if given else count, "u32")
    word = min(size, 8)

    def run(group: Group) -> None:
        if not np.isin(counts[group.lanes], (0, size)).all():
            raise UnknownForm(f"a copy of a part of {size} bytes")
        data = np.zeros((registers.count, size), np.uint8)
        if readers := group.narrowed(counts > 0):
            index = origin(readers)
            for part in range(0, size, word):
                values = memory.load(index + part, word, readers.lanes)
                data[readers.lanes, part : part + word] = values[:, None].view(np.uint8)
        index = target(group)
        for part in range(0, size, word):
            values = data[group.lanes, part : part + word].copy().view(WORDS[word])[:, 0]
            memory.store(index + part, word, values, group.lanes)
            registers.copies.issue(index + part, word, group.lanes)

    return run


@form(r"cvta(\.to)?\.(global|shared|param)\.u64")
def convert_address(instruction: Instruction, registers: Registers, to: str, space: str) -> Action:
    memory = registers.memory
    d = registers.write(instruction.operands[0], "u64")
    a = registers.read(instruction.operands[1], "u64")
    if space == "global":  # global addresses are generic ones
        return lambda group: put(d, a, group)
    shift = memory.base + {"shared": memory.shared, "param": memory.parameters}[space]
    shift = np.uint64((-shift if to else shift) % 2**64)
    return lambda group: put(d, a + shift, group)
