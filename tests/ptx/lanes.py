"""Registers of all lanes of a block as numpy vectors, sets of lanes that run together, and forms.

A form plays one kind of instruction: it takes an instruction, the registers of its function and
the groups of its pattern, and returns a function of the group of lanes that runs it. What no
pattern fits as a whole is refused: a modifier that is passed over would be a wrong result.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import numpy as np

from tests.ptx.memory import WARP, WORDS, Copies, Memory, Trap
from tests.ptx.parse import SIZES, Function, Instruction, Operand, UnknownForm

DTYPES: dict[str, type[np.generic]] = {
    "b8": np.uint8, "u8": np.uint8, "s8": np.int8,
    "b16": np.uint16, "u16": np.uint16, "s16": np.int16, "f16": np.float16, "bf16": np.uint16,
    "b32": np.uint32, "u32": np.uint32, "s32": np.int32, "f32": np.float32,
    "b64": np.uint64, "u64": np.uint64, "s64": np.int64, "pred": np.bool_,
}  # fmt: skip


class Group:
    """Lanes of a block that are at the same instruction.

    where: for numpy, True if all lanes are in it, else a boolean for each lane.
    """

    __slots__ = ("_lanes", "_warps", "where")

    def __init__(self, where: np.ndarray | bool) -> None:
        self.where = where
        self._lanes: np.ndarray | None = None
        self._warps: np.ndarray | None = None

    @classmethod
    def everyone(cls, count: int) -> Group:
        group = cls(True)
        group._lanes = np.arange(count)
        group._warps = np.arange(count // WARP)
        return group

    @property
    def lanes(self) -> np.ndarray:
        """Their numbers in the block."""
        if self._lanes is None:
            self._lanes = np.flatnonzero(self.where)
        return self._lanes

    @property
    def warps(self) -> np.ndarray:
        """The warps that are in it as a whole; a part of a warp is a trap."""
        if self._warps is None:
            rows = np.asarray(self.where).reshape(-1, WARP)
            some = rows.any(1)
            if (some != rows.all(1)).any():
                raise Trap(
                    f"an instruction of whole warps reached by a part of warp "
                    f"{int(np.flatnonzero(some != rows.all(1))[0])}"
                )
            self._warps = np.flatnonzero(some)
        return self._warps

    def narrowed(self, predicate: np.ndarray) -> Group | None:
        """Lanes for which the predicate holds; None if none."""
        if self.where is True:
            if predicate.all():
                return self
            mask = predicate.copy()
        else:
            mask = predicate & self.where
            if np.array_equal(mask, self.where):
                return self
        return Group(mask) if mask.any() else None


class Registers:
    """The registers of one function, and how its operands are read and written.

    Registers begin with a pattern, so that what nobody set shows. A register has no sign and is
    neither integer nor float: each use takes the view that its type says.
    """

    def __init__(
        self,
        function: Function,
        memory: Memory,
        count: int,
        symbols: dict[str, tuple[str, int]],
        special: dict[str, np.ndarray],
        copies: Copies,
    ) -> None:
        self.memory, self.count, self.copies = memory, count, copies
        self.symbols = symbols  # name: state space and place in it
        self.formal: dict[str, np.ndarray] = {}  # parameters of calls: (lanes, bytes)
        self._constants: dict[tuple[int, int], np.ndarray] = {}
        self._arrays = dict(special)
        for name, type_ in function.registers.items():
            if type_ == "pred":
                self._arrays[name] = np.zeros(count, bool)
            else:
                pattern = np.full(count * SIZES[type_], 0xA5, np.uint8)
                self._arrays[name] = pattern.view(WORDS[SIZES[type_]])

    def read(self, operand: Operand, type_: str) -> np.ndarray:
        """A view of what the operand holds, one value a lane, that follows later changes."""
        dtype, size = np.dtype(DTYPES[type_]), SIZES[type_]
        if operand.kind == "number":
            value = operand.value if type_ != "pred" else operand.value != 0
            return self.constant(value, size).view(dtype)
        if operand.name in self.symbols:
            return self.constant(self.symbols[operand.name][1], size).view(dtype)
        array = self._arrays[operand.name]
        if array.itemsize > size:  # the low part of a wider register
            return array.view(dtype)[:: array.itemsize // size]
        return array.view(dtype)

    def write(self, operand: Operand, type_: str) -> np.ndarray:
        """The register to write a value of this type to; its size is the type's."""
        if operand.name == "_":
            return np.empty(self.count, DTYPES[type_])
        array = self._arrays[operand.name]
        if array.itemsize != SIZES[type_]:
            raise UnknownForm(f"target {operand.name} of {array.itemsize} bytes as {type_}")
        return array.view(DTYPES[type_])

    def write_extended(
        self, operand: Operand, type_: str
    ) -> Callable[[np.ndarray, np.ndarray], None]:
        """For loads and conversions, whose register may be wider: takes lanes and values."""
        narrow = np.dtype(DTYPES[type_])
        bits = narrow if narrow.kind in "iu" else np.dtype(WORDS[narrow.itemsize])
        array = self.write(operand, type_) if operand.name == "_" else self._arrays[operand.name]
        target = array.view(f"{bits.kind}{array.itemsize}")

        def extended(lanes: np.ndarray, values: np.ndarray) -> None:
            target[lanes] = np.ascontiguousarray(values).view(bits)

        return extended

    def predicate(self, instruction: Instruction) -> Callable[[], np.ndarray]:
        """Whether each lane runs the instruction."""
        array = self._arrays[instruction.predicate]
        return (lambda: ~array) if instruction.negated else (lambda: array)

    def constant(self, value: int, size: int) -> np.ndarray:
        value %= 256**size
        if (value, size) not in self._constants:
            self._constants[value, size] = np.full(self.count, value, WORDS[size])
        return self._constants[value, size]

    def place(self, operand: Operand, space: str, size: int) -> Callable[[Group], np.ndarray]:
        """Checked places in the memory's array of an address operand, for accesses of this size."""
        memory = self.memory
        origins = {"shared": memory.shared, "param": memory.parameters, "local": memory.local}
        origin = np.uint64(origins.get(space, -memory.base) % 2**64)
        if operand.name in self.symbols:
            named, at = self.symbols[operand.name]
            if named != space:
                raise UnknownForm(f"variable of .{named} in an access of .{space or 'generic'}")
            register = self.constant(at, 8)
        else:
            register = self._arrays[operand.name]
        offset = register.dtype.type(operand.value % 256**register.itemsize)

        def place(group: Group) -> np.ndarray:
            value = register if group.where is True else register[group.lanes]
            at = (value + offset).astype(np.uint64) + origin  # wraps as the machine's 32 bits do
            if space == "local":  # each lane's own
                at += group.lanes.astype(np.uint64) * np.uint64(memory.local_bytes)
            return memory.locate(at, size)

        return place


Action = Callable[[Group], None]
Form = Callable[..., Action]
FORMS: list[tuple[re.Pattern[str], Form]] = []


def form(pattern: str) -> Callable[[Form], Form]:
    """Register a form by what the names of its instructions look like."""

    def register(function: Form) -> Form:
        FORMS.append((re.compile(pattern), function))
        return function

    return register


Computation = tuple[Sequence[str], str, Callable[..., np.ndarray]]


def computes(pattern: str) -> Callable[[Callable[..., Computation]], Callable[..., Computation]]:
    """Register a form that computes: it gives the types of the sources and of the result, and a
    function of the sources."""

    def register(describe: Callable[..., Computation]) -> Callable[..., Computation]:
        def play(instruction: Instruction, registers: Registers, *groups: Any) -> Action:
            types, result, function = describe(*groups)
            target, *operands = instruction.operands
            sources = [registers.read(o, t) for o, t in zip(operands, types, strict=True)]
            d = registers.write(target, result)
            if isinstance(function, np.ufunc):
                return lambda group: function(*sources, out=d, where=group.where)
            return lambda group: put(d, function(*sources), group)

        form(pattern)(play)
        return describe

    return register


@cache
def _form_of(name: str) -> tuple[Form, tuple[str, ...]]:
    for pattern, make in FORMS:
        if match := pattern.fullmatch(name):
            return make, match.groups(default="")
    raise UnknownForm(name)


def translate(instruction: Instruction, registers: Registers) -> Action:
    """How an instruction other than a branch, call or barrier is played, with its predicate."""
    try:
        make, groups = _form_of(instruction.name)
        action = make(instruction, registers, *groups)
    except (KeyError, UnknownForm) as error:
        raise UnknownForm(f"{instruction.text} (line {instruction.line}): {error}") from error
    if not instruction.predicate:
        return action
    holds = registers.predicate(instruction)

    def guarded(group: Group) -> None:
        chosen = group.narrowed(holds())
        if chosen is not None:
            action(chosen)

    return guarded


def put(target: np.ndarray, values: np.ndarray, group: Group) -> None:
    np.copyto(target, values, where=group.where)
