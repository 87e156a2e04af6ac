"""Registers of all lanes of a block as numpy vectors, sets of lanes that run together, and forms.

A form plays one kind of instruction. It takes an instruction and the registers of its function, and
returns a function of the group of lanes that runs it. It must refuse what it does not recognise, by
UnknownForm: a modifier that is passed over would be a wrong result.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

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

    def __init__(self, where: np.ndarray | bool, everyone: Group | None = None) -> None:
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

    def part(self, chosen: np.ndarray) -> Group:
        """Lanes for which `chosen`, a boolean for each of the group, holds."""
        mask = np.zeros(len(self.lanes) if self.where is True else np.size(self.where), bool)
        mask[self.lanes[chosen]] = True
        return Group(mask)


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
        copies: Copies,
    ) -> None:
        self.function, self.memory, self.count, self.copies = function, memory, count, copies
        self.symbols = symbols  # name: state space and place in it
        self.special: dict[str, np.ndarray] = {}
        self.everyone = Group.everyone(count)
        self.formal: dict[str, np.ndarray] = {}  # parameters of calls: (lanes, bytes)
        self._constants: dict[tuple[int, int], np.ndarray] = {}
        self._arrays: dict[str, np.ndarray] = {}
        sizes = {name: SIZES[type_] for name, type_ in function.registers.items()}
        for size in set(sizes.values()):
            names = [name for name, s in sizes.items() if s == size]
            rows = np.full((len(names), count * size), 0xA5, np.uint8).view(WORDS[size])
            self._arrays |= dict(zip(names, rows, strict=True))
        for name, type_ in function.registers.items():
            if type_ == "pred":
                self._arrays[name] = np.zeros(count, bool)

    def array(self, name: str) -> np.ndarray:
        if name in self._arrays:
            return self._arrays[name]
        if name in self.special:
            return self.special[name]
        raise UnknownForm(f"register {name}")

    def read(self, operand: Operand, type_: str) -> np.ndarray:
        """A view of what the operand holds, one value a lane, that follows later changes."""
        dtype, size = np.dtype(DTYPES[type_]), SIZES[type_]
        if operand.kind in ("integer", "float32"):
            return self._constant(operand, type_).view(dtype)
        if operand.kind != "name":
            raise UnknownForm(f"{operand.kind} where a value is expected")
        if operand.name in self.symbols:
            space, place = self.symbols[operand.name]
            return self.constant(self.address(space, place), size).view(dtype)
        array = self.array(operand.name)
        if type_ == "pred" or array.dtype == bool:
            if type_ != "pred" or array.dtype != bool:
                raise UnknownForm(f"{operand.name} as {type_}")
            return array
        if array.itemsize > size:  # the low part of a wider register
            return array.view(dtype)[:: array.itemsize // size]
        if array.itemsize < size:
            raise UnknownForm(f"{operand.name} of {array.itemsize} bytes as {type_}")
        return array.view(dtype)

    def address(self, space: str, place: int) -> int:
        """Value that `mov` puts into a register for a variable."""
        return place + self.memory.base * (space == "global")

    def write(self, operand: Operand, type_: str) -> np.ndarray:
        """The register to write a value of this type to; its size must be the type's."""
        if operand.kind != "name" or operand.negated:
            raise UnknownForm(f"{operand.kind} as a target")
        if operand.name == "_":
            return np.empty(self.count, DTYPES[type_])
        if operand.name not in self._arrays:
            raise UnknownForm(f"target {operand.name}")
        array = self._arrays[operand.name]
        if (array.dtype == bool) != (type_ == "pred") or array.itemsize != SIZES[type_]:
            raise UnknownForm(f"target {operand.name} of {array.itemsize} bytes as {type_}")
        return array if type_ == "pred" else array.view(DTYPES[type_])

    def write_extended(
        self, operand: Operand, type_: str
    ) -> Callable[[np.ndarray, np.ndarray], None]:
        """For loads and conversions, whose register may be wider: takes lanes and values."""
        if operand.name == "_":
            return lambda lanes, values: None
        array = self._arrays[operand.name]
        if array.itemsize < SIZES[type_] or array.dtype == bool:
            raise UnknownForm(f"target {operand.name} of {array.itemsize} bytes as {type_}")
        narrow = np.dtype(DTYPES[type_])
        if array.itemsize == narrow.itemsize:
            narrow_view = array.view(narrow)

            def same(lanes: np.ndarray, values: np.ndarray) -> None:
                narrow_view[lanes] = values

            return same
        wide = array.view(f"{'i' if narrow.kind == 'i' else 'u'}{array.itemsize}")
        raw = narrow if narrow.kind in "iu" else np.dtype(WORDS[narrow.itemsize])

        def extended(lanes: np.ndarray, values: np.ndarray) -> None:
            wide[lanes] = np.ascontiguousarray(values).view(raw)

        return extended

    def constant(self, value: int, size: int) -> np.ndarray:
        value %= 256**size
        if (value, size) not in self._constants:
            self._constants[value, size] = np.full(self.count, value, WORDS[size])
        return self._constants[value, size]

    def _constant(self, operand: Operand, type_: str) -> np.ndarray:
        size = SIZES[type_]
        if type_ == "pred":
            return self.constant(int(operand.value != 0), 1)
        is_float = operand.kind == "float32"
        if (is_float and size != 4) or (not is_float and type_ == "f32"):
            raise UnknownForm(f"{operand.kind} {operand.value} as {type_}")
        return self.constant(operand.value, size)

    def place(self, operand: Operand, space: str) -> Callable[[Group], np.ndarray]:
        """Place in the memory's array of an address operand, as uint64 of the lanes."""
        memory = self.memory
        origin = {
            "": -memory.base,
            "global": -memory.base,
            "shared": memory.shared,
            "param": memory.parameters,
            "local": memory.local,
        }[space]
        if operand.name in self.symbols or not operand.name:
            named, place = self.symbols.get(operand.name, (space, 0))
            if named != space:
                raise UnknownForm(f"variable of .{named} in an access of .{space or 'generic'}")
            value = self.address(space, place) + operand.value
            base = np.full(self.count, (value + origin) % 2**64, np.uint64)
            return self._spread_local(lambda group: base[group.lanes], space)
        register = self.array(operand.name)
        if register.itemsize not in (4, 8):
            raise UnknownForm(f"address in {operand.name}")
        narrow = register.itemsize == 4
        if narrow and space not in ("shared", "local", "param"):
            raise UnknownForm(f"a generic or global address of 32 bits in {operand.name}")
        add = np.uint64((operand.value + (0 if narrow else origin)) % 2**64)
        shift = np.uint64(origin % 2**64)

        def computed(group: Group) -> np.ndarray:
            value = register if group.where is True else register[group.lanes]
            if narrow:  # wraps as the machine's 32 bits do
                return (value + np.uint32(operand.value % 2**32)).astype(np.uint64) + shift
            return value + add

        return self._spread_local(computed, space)

    def _spread_local(
        self, place: Callable[[Group], np.ndarray], space: str
    ) -> Callable[[Group], np.ndarray]:
        """Local addresses are each lane's own."""
        if space != "local":
            return place
        step = np.uint64(self.memory.local_bytes)
        return lambda group: place(group) + group.lanes.astype(np.uint64) * step


Action = Callable[[Group], None]
Form = Callable[[Instruction, Registers], Action]
FORMS: dict[str, Form] = {}


def form(*opcodes: str) -> Callable[[Form], Form]:
    def register(function: Form) -> Form:
        FORMS.update(dict.fromkeys(opcodes, function))
        return function

    return register


def translate(instruction: Instruction, registers: Registers) -> Action:
    """How an instruction that is no branch, call or barrier is played, its predicate included."""
    if instruction.opcode not in FORMS:
        raise UnknownForm(full_name(instruction))
    try:
        action = FORMS[instruction.opcode](instruction, registers)
    except UnknownForm as error:
        raise UnknownForm(f"{instruction.text} (line {instruction.line}): {error}") from None
    guard = instruction.predicate
    if guard is None:
        return action
    predicate = registers.read(guard, "pred")

    def guarded(group: Group) -> None:
        chosen = group.narrowed(~predicate if guard.negated else predicate)
        if chosen is not None:
            action(chosen)

    return guarded


class Modifiers:
    """The modifiers of an instruction, taken one by one; `done` refuses what is left."""

    def __init__(self, instruction: Instruction) -> None:
        self.instruction, self.left = instruction, list(instruction.modifiers)

    def take(self, *names: str) -> str:
        """The first of these that is there, or ""."""
        for name in self.left:
            if name in names:
                self.left.remove(name)
                return name
        return ""

    def type(self) -> str:
        """The last one."""
        return self.left.pop()

    def done(self) -> None:
        if self.left:
            raise UnknownForm(full_name(self.instruction))


def full_name(instruction: Instruction) -> str:
    return ".".join((instruction.opcode, *instruction.modifiers))


def refuse(instruction: Instruction) -> UnknownForm:
    return UnknownForm(full_name(instruction))


def put(target: np.ndarray, values: np.ndarray, group: Group) -> None:
    np.copyto(target, values, where=group.where)


def sources(
    instruction: Instruction, registers: Registers, types: Sequence[str]
) -> list[np.ndarray]:
    """The operands after the first, each as its type."""
    operands = instruction.operands[1:]
    if len(operands) != len(types):
        raise UnknownForm(f"{len(operands)} sources, {len(types)} expected")
    if any(operand.negated for operand in operands):
        raise refuse(instruction)
    return [registers.read(o, t) for o, t in zip(operands, types, strict=True)]
