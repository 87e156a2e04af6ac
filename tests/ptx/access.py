"""Loads, stores and asynchronous copies."""

from __future__ import annotations

import numpy as np

from tests.ptx.lanes import DTYPES, Action, Group, Modifiers, Registers, form, put, refuse
from tests.ptx.memory import ONCE, OPEN, SETTLED, WORDS, spread
from tests.ptx.parse import SIZES, Instruction, Operand, UnknownForm

SPACES = ("global", "shared", "local", "param")
HINTS = ("nc", "ca", "cg", "volatile", "L1::evict_first", "L1::evict_last", "L1::no_allocate")


class Place:
    """An address operand: checked places in memory for the lanes of a group."""

    def __init__(self, operand: Operand, space: str, size: int, alignment: int, r: Registers):
        self.memory, self.size, self.alignment = r.memory, size, alignment
        self.at = r.place(operand, space)
        self.shared_among_lanes = space not in ("local", "param")

    def __call__(self, group: Group) -> np.ndarray:
        return self.memory.locate(self.at(group), self.size, self.alignment)


def read_words(place: Place, index: np.ndarray, size: int, group: Group) -> np.ndarray:
    """The words of `size` bytes at these places."""
    memory = place.memory
    states = memory.check_read(index, size)
    if place.shared_among_lanes and int(np.bitwise_or.reduce(states)) & spread(OPEN | ONCE, size):
        memory.races.read(index, size, group.lanes)
    return memory.words[size].take(index >> size.bit_length() - 1)


def write_words(
    place: Place, index: np.ndarray, size: int, values: np.ndarray, group: Group
) -> None:
    memory = place.memory
    states = memory.check_write(index, size)
    word = index >> size.bit_length() - 1
    memory.words[size][word] = values
    if place.shared_among_lanes:
        # A value read back differs where lanes write different values to one place.
        same = bool((memory.words[size].take(word) == values).all())
        memory.races.write(index, size, group.lanes, same)
    memory.wrote(index, size, states)


def _parts(operand: Operand) -> tuple[Operand, ...]:
    return operand.parts if operand.kind == "vector" else (operand,)


def _access(instruction: Instruction) -> tuple[str, str, int]:
    """Type, state space and number of parts of a load or a store."""
    modifiers = Modifiers(instruction)
    type_, space = modifiers.type(), modifiers.take(*SPACES)
    while modifiers.take(*HINTS):
        pass
    count = int((modifiers.take("v2", "v4") or "v1")[1:])
    modifiers.done()
    return type_, space, count


@form("ld")
def load(instruction: Instruction, registers: Registers) -> Action:
    type_, space, count = _access(instruction)
    target, address = instruction.operands
    parts, size = _parts(target), SIZES[type_]
    if len(parts) != count:
        raise refuse(instruction)
    writes = [registers.write_extended(part, type_) for part in parts]
    dtype = np.dtype(DTYPES[type_])
    if space == "param" and address.name in registers.formal:
        formal = registers.formal[address.name].view(dtype)
        first = address.value // size

        def load_formal(group: Group) -> None:
            for i, write in enumerate(writes):
                write(group.lanes, formal[group.lanes, first + i])

        return load_formal
    place = Place(address, space, size * count, size * count, registers)

    def run(group: Group) -> None:
        index = place(group)
        for i, write in enumerate(writes):
            write(group.lanes, read_words(place, index + i * size, size, group).view(dtype))

    return run


@form("st")
def store(instruction: Instruction, registers: Registers) -> Action:
    type_, space, count = _access(instruction)
    address, source = instruction.operands
    parts, size = _parts(source), SIZES[type_]
    if len(parts) != count:
        raise refuse(instruction)
    word = WORDS[size]
    values = [registers.read(part, type_).view(word) for part in parts]
    if space == "param" and address.name in registers.formal:
        formal = registers.formal[address.name].view(word)
        first = address.value // size

        def store_formal(group: Group) -> None:
            for i, value in enumerate(values):
                formal[group.lanes, first + i] = value[group.lanes]

        return store_formal
    if space == "param":
        raise refuse(instruction)
    place = Place(address, space, size * count, size * count, registers)

    def run(group: Group) -> None:
        index = place(group)
        for i, value in enumerate(values):
            write_words(place, index + i * size, size, value[group.lanes], group)

    return run


@form("cp")
def copy(instruction: Instruction, registers: Registers) -> Action:
    modifiers = Modifiers(instruction)
    if not modifiers.take("async"):
        raise refuse(instruction)
    copies = registers.copies
    if modifiers.take("commit_group"):
        modifiers.done()

        def commit(group: Group) -> None:
            copies.committed[group.lanes] += 1

        return commit
    if modifiers.take("wait_group"):
        modifiers.done()
        most = instruction.operands[0].value
        return lambda group: copies.wait(most, group.lanes)
    return _copy(instruction, registers, modifiers)


def _copy(instruction: Instruction, registers: Registers, modifiers: Modifiers) -> Action:
    cached = modifiers.take("ca", "cg")
    if not modifiers.take("shared") or not modifiers.take("global") or not cached:
        raise refuse(instruction)
    modifiers.done()
    operands = instruction.operands
    size = operands[2].value
    if size not in (4, 8, 16) or (cached == "cg" and size != 16):
        raise refuse(instruction)
    memory = registers.memory
    target = Place(operands[0], "shared", size, size, registers)
    source = Place(operands[1], "global", size, size, registers)
    given = registers.read(operands[3], "u32") if len(operands) > 3 else None
    word = min(size, 8)

    def run(group: Group) -> None:
        to = target(group)
        taken = np.full(len(to), size) if given is None else given[group.lanes].astype(np.int64)
        if (taken > size).any():
            raise UnknownForm(f"a copy of {int(taken.max())} bytes into {size}")
        data = _gather(source, group, taken, size)
        for part in range(0, size, word):
            at = to + part
            memory.check_write(at, word)
            memory.races.write(at, word, group.lanes)
            shift = word.bit_length() - 1
            memory.words[word][at >> shift] = data[:, part : part + word].view(WORDS[word])[:, 0]
            states = memory.states[word]
            states[at >> shift] &= ~states.dtype.type(spread(SETTLED, word))
        registers.copies.issue(to, size, group.lanes)

    return run


def _gather(source: Place, group: Group, taken: np.ndarray, size: int) -> np.ndarray:
    """(lanes, size) bytes: those that are taken, and zeros. The source of none is not read."""
    data = np.zeros((len(taken), size), np.uint8)
    if (taken == size).all():
        index = source(group)
        word = min(size, 8)
        for part in range(0, size, word):
            values = read_words(source, index + part, word, group)
            data[:, part : part + word] = values[:, None].view(np.uint8)
        return data
    some = taken > 0
    if not some.any():
        return data
    if (taken[some] == size).all():
        data[some] = _gather(source, group.part(some), taken[some], size)
        return data
    for i in range(int(taken.max())):
        has = taken > i
        chosen = group.part(has)
        data[has, i] = read_words(source, source(chosen) + i, 1, chosen)
    return data


@form("cvta")
def convert_address(instruction: Instruction, registers: Registers) -> Action:
    modifiers, memory = Modifiers(instruction), registers.memory
    type_ = modifiers.type()
    back, space = bool(modifiers.take("to")), modifiers.take(*SPACES)
    modifiers.done()
    if type_ != "u64" or not space:
        raise refuse(instruction)
    d = registers.write(instruction.operands[0], "u64")
    a = registers.read(instruction.operands[1], "u64")
    if space == "global":  # global addresses are generic ones
        return lambda group: put(d, a, group)
    origin = {"shared": memory.shared, "param": memory.parameters, "local": memory.local}[space]
    shift = np.full(registers.count, memory.base + origin, np.uint64)
    if space == "local":
        shift = shift + np.arange(registers.count, dtype=np.uint64) * np.uint64(memory.local_bytes)
    ufunc = np.subtract if back else np.add
    return lambda group: ufunc(a, shift, out=d, where=group.where)
