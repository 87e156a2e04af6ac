"""Loads, stores and asynchronous copies."""

from __future__ import annotations

import numpy as np

from tests.ptx.lanes import DTYPES, Action, Group, Registers, form, put
from tests.ptx.memory import WORDS
from tests.ptx.parse import SIZES, Instruction, UnknownForm

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
    taken = registers.read(given[0] if given else count, "u32")
    word = min(size, 8)

    def run(group: Group) -> None:
        if not np.isin(taken[group.lanes], (0, size)).all():
            raise UnknownForm(f"a copy of a part of {size} bytes")
        data = np.zeros((registers.count, size), np.uint8)
        if readers := group.narrowed(taken > 0):
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
