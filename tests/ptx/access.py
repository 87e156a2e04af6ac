"""Loads, stores, asynchronous copies and atomics."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from tests.ptx.forms import Action, Modifiers, form, put, refuse
from tests.ptx.lanes import DTYPES, Group, Registers
from tests.ptx.layout import WORDS
from tests.ptx.memory import ONCE, OPEN, SETTLED, spread
from tests.ptx.parse import SIZES, Instruction, Operand, UnknownForm

SPACES = ("global", "shared", "local", "param", "const")
HINTS = (
    "weak", "volatile", "relaxed", "acquire", "release", "gpu", "cta", "sys", "nc", "ca", "cg",
    "cs", "lu", "cv", "wb", "wt", "L1::evict_normal", "L1::evict_last", "L1::evict_first",
    "L1::evict_unchanged", "L1::no_allocate", "L2::64B", "L2::128B", "L2::256B", "L2::cache_hint",
    "L2::evict_first", "L2::evict_last",
)  # fmt: skip


class Place:
    """An address operand: checked places in memory for the lanes of a group."""

    def __init__(self, operand: Operand, space: str, size: int, alignment: int, r: Registers):
        self.memory, self.size, self.alignment = r.memory, size, alignment
        self.at = r.place(operand, space)
        self.shared_among_lanes = space not in ("local", "param", "const")

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


def _drop_hints(modifiers: Modifiers) -> int:
    """Returns how many operands the hints bring: a cache policy."""
    policies = 0
    while hint := modifiers.take(*HINTS):
        policies += hint == "L2::cache_hint"
    return policies


def _space_of(modifiers: Modifiers) -> str:
    """A suffix says whose shared memory; only the block's own is here."""
    for name in ("shared::cta", "param::entry", "param::func"):
        if modifiers.take(name):
            return name.split(":")[0]
    return modifiers.take(*SPACES)


@form("ld", "ldu")
def load(instruction: Instruction, registers: Registers) -> Action:
    modifiers = Modifiers(instruction)
    type_ = modifiers.type()
    space = _space_of(modifiers)
    policies = _drop_hints(modifiers)
    count = int((modifiers.take("v2", "v4", "v8") or "v1")[1:])
    modifiers.done()
    target, address = instruction.operands[: len(instruction.operands) - policies]
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
    modifiers = Modifiers(instruction)
    type_ = modifiers.type()
    space = _space_of(modifiers)
    policies = _drop_hints(modifiers)
    count = int((modifiers.take("v2", "v4", "v8") or "v1")[1:])
    modifiers.done()
    address, source = instruction.operands[: len(instruction.operands) - policies]
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
    if space in ("param", "const"):
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
    if modifiers.take("wait_all"):
        modifiers.done()
        return lambda group: copies.wait(-1, group.lanes)
    return _copy(instruction, registers, modifiers)


def _copy(instruction: Instruction, registers: Registers, modifiers: Modifiers) -> Action:
    cached = modifiers.take("ca", "cg")
    policies = _drop_hints(modifiers)
    if not modifiers.take("shared", "shared::cta") or not modifiers.take("global") or not cached:
        raise refuse(instruction)
    modifiers.done()
    operands = instruction.operands[: len(instruction.operands) - policies]
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


@form("cvta", "isspacep")
def convert_address(instruction: Instruction, registers: Registers) -> Action:
    modifiers = Modifiers(instruction)
    memory = registers.memory
    if instruction.opcode == "isspacep":
        space = _space_of(modifiers)
        modifiers.done()
        if space not in ("shared", "global"):
            raise refuse(instruction)
        a = registers.read(instruction.operands[1], "u64")
        p = registers.write(instruction.operands[0], "pred")
        limit, base = np.uint64(memory.parameters), np.uint64(memory.base)

        def tell(group: Group) -> None:
            shared = a - base < limit
            put(p, shared if space == "shared" else ~shared, group)

        return tell
    type_ = modifiers.type()
    back = bool(modifiers.take("to"))
    space = _space_of(modifiers)
    modifiers.done()
    if type_ != "u64" or not space:
        raise refuse(instruction)
    origin = {"shared": memory.shared, "param": memory.parameters, "local": memory.local}.get(space)
    d = registers.write(instruction.operands[0], "u64")
    a = registers.read(instruction.operands[1], "u64")
    if origin is None:  # global addresses are generic ones
        return lambda group: put(d, a, group)
    shift = np.full(registers.count, memory.base + origin, np.uint64)
    if space == "local":
        shift = shift + np.arange(registers.count, dtype=np.uint64) * np.uint64(memory.local_bytes)
    ufunc = np.subtract if back else np.add
    return lambda group: ufunc(a, shift, out=d, where=group.where)


_ATOMIC: dict[str, Callable[[np.generic, np.generic], np.generic]] = {
    "add": lambda a, b: a + b, "min": min, "max": max, "and": lambda a, b: a & b,
    "or": lambda a, b: a | b, "xor": lambda a, b: a ^ b, "exch": lambda a, b: b,
}  # type: ignore[dict-item]  # fmt: skip


@form("atom", "red")
def atomic(instruction: Instruction, registers: Registers) -> Action:
    """Lane after lane."""
    modifiers = Modifiers(instruction)
    type_ = modifiers.type()
    space = _space_of(modifiers)
    _drop_hints(modifiers)
    name = modifiers.take(*_ATOMIC, "cas")
    modifiers.done()
    if not name or type_ in ("f16x2", "bf16x2", "bf16"):
        raise refuse(instruction)
    operands = list(instruction.operands)
    target = operands.pop(0) if instruction.opcode == "atom" else None
    place = Place(operands[0], space, SIZES[type_], SIZES[type_], registers)
    given = [registers.read(operand, type_) for operand in operands[1:]]
    write = registers.write_extended(target, type_) if target else None
    words = registers.memory.words[SIZES[type_]].view(DTYPES[type_])

    def run(group: Group) -> None:
        index = place(group)
        place.memory.check_read(index, SIZES[type_])
        states = place.memory.check_write(index, SIZES[type_])
        old = np.empty(len(index), words.dtype)
        for i, (at, lane) in enumerate(
            zip(index >> SIZES[type_].bit_length() - 1, group.lanes, strict=True)
        ):
            old[i] = words[at]
            if name != "cas":
                words[at] = _ATOMIC[name](old[i], given[0][lane])
            elif old[i] == given[0][lane]:
                words[at] = given[1][lane]
        place.memory.wrote(index, SIZES[type_], states)
        if write:
            write(group.lanes, old)

    return run


@form("prefetch", "prefetchu", "membar", "fence", "nanosleep", "createpolicy", "discard", "pmevent")
def nothing(instruction: Instruction, registers: Registers) -> Action:
    """Hints, and orders of memory that one block after another keeps anyway."""
    return lambda group: None
