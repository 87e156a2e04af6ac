"""Play a compiled kernel: all lanes of a block together, block after block.

    memory = Memory()
    x, y = memory.place(x), memory.empty(x.shape, once=True)
    Player(ptx, memory).launch("kernel_name", grid=(4,), block=(128,), arguments=[x, y, x.numel()])

It raises Trap for what a kernel must not do, and UnknownForm for what it cannot play.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from torch import Tensor

from tests.ptx import access, arithmetic, warps
from tests.ptx.lanes import Action, Group, Registers, refuse, translate
from tests.ptx.memory import FIRST_SHARED, WARP, Copies, Memory, Trap
from tests.ptx.parse import Function, Instruction, UnknownForm, Variable, parse

# Imported for the forms that they register.
KINDS = (access, arithmetic, warps)
FIRST_LOCAL = 16

# The block where all lanes of a group go, or parts of the group with the block of each.
Outcome = int | list[tuple[int, Group]]
End = Callable[[Group], Outcome]
ENDS = {"bra", "brx", "call", "ret"}


@dataclass
class Block:
    actions: list[Action] = field(default_factory=list)
    instructions: list[Instruction] = field(default_factory=list)
    end: End = lambda group: []
    last: Instruction | None = None  # what ends it, unless it runs on into the next


def ends_block(instruction: Instruction) -> bool:
    if instruction.opcode == "bar":
        return instruction.modifiers[0] != "warp"
    return instruction.opcode in ENDS


def callees_first(functions: dict[str, Function], entry: str) -> list[Function]:
    order: list[Function] = []

    def visit(name: str, above: tuple[str, ...]) -> None:
        if name in above:
            raise UnknownForm(f"recursion of {name}")
        for instruction in functions[name].code:
            if instruction.opcode == "call":
                visit(callee_of(instruction, functions), (*above, name))
        if functions[name] not in order:
            order.append(functions[name])

    visit(entry, ())
    return order


def callee_of(instruction: Instruction, functions: dict[str, Function]) -> str:
    for operand in instruction.operands:
        if operand.kind == "name" and operand.name in functions:
            return operand.name
    raise UnknownForm(f"{instruction.text}: a call of no function that is here")


class Code:
    """All blocks of a kernel, numbered; callees come before their callers.

    So the lowest number among lanes that parted is the deepest call and there the place that lies
    furthest back: who runs it first lets them meet again. arrive: what a barrier does with the
    lanes that reach it, given its instruction and the block behind.
    """

    def __init__(
        self,
        functions: dict[str, Function],
        entry: str,
        registers: dict[str, Registers],
        arrive: Callable[[Instruction, int, Group], Outcome],
    ) -> None:
        self.functions, self.registers, self.arrive = functions, registers, arrive
        self.blocks: list[Block] = []
        self.starts: dict[str, dict[int, int]] = {}  # of a function: index into its code, block
        self.returns: dict[str, np.ndarray] = {}  # for each lane the block to go on with
        self.landings: dict[int, Action] = {}  # what fetches a result before that block
        order = callees_first(functions, entry)
        for function in order:
            starts = {0, *function.labels.values(), len(function.code)}
            starts |= {i + 1 for i, one in enumerate(function.code) if ends_block(one)}
            first = len(self.blocks)
            self.starts[function.name] = {s: first + i for i, s in enumerate(sorted(starts))}
            self.blocks += [Block() for _ in starts]
            self.returns[function.name] = np.zeros(registers[function.name].count, np.int64)
        for function in order:
            self._fill(function)
        self.first = self.starts[entry][0]

    def _fill(self, function: Function) -> None:
        starts = self.starts[function.name]
        block = self.blocks[starts[0]]
        for i, instruction in enumerate(function.code):
            if i in starts:
                if block is not self.blocks[starts[i]] and block.last is None:
                    block.end = _always(starts[i])
                block = self.blocks[starts[i]]
            if ends_block(instruction):
                block.last = instruction
                block.end = self._end(function, instruction, starts[i + 1])
            else:
                block.actions.append(translate(instruction, self.registers[function.name]))
                block.instructions.append(instruction)

    def _end(self, function: Function, instruction: Instruction, following: int) -> End:
        opcode = instruction.opcode
        if opcode == "bra":
            end = _always(self._label(function, instruction.operands[0].name))
        elif opcode == "brx":
            end = self._indexed(function, instruction)
        elif opcode == "call":
            end = self._call(function, instruction, following)
        elif opcode == "bar":
            end = self._barrier(instruction, following)
        else:
            end = _leave if function.entry else self._return(function)
        if instruction.predicate is None:
            return end
        if opcode == "bar":
            raise UnknownForm(f"{instruction.text}: a barrier with a predicate")
        return self._guarded(function, instruction, end, following)

    def _label(self, function: Function, name: str) -> int:
        if name not in function.labels:
            raise UnknownForm(f"label {name}")
        return self.starts[function.name][function.labels[name]]

    def _guarded(
        self, function: Function, instruction: Instruction, end: End, following: int
    ) -> End:
        guard = instruction.predicate
        assert guard is not None
        predicate = self.registers[function.name].read(guard, "pred")

        def parted(group: Group) -> Outcome:
            truth = ~predicate if guard.negated else predicate
            chosen = group.narrowed(truth)
            if chosen is None:
                return following
            if chosen is group:
                return end(group)
            others = group.narrowed(~truth)
            assert others is not None
            outcome = end(chosen)
            parts = [(outcome, chosen)] if isinstance(outcome, int) else outcome
            return [*parts, (following, others)]

        return parted

    def _indexed(self, function: Function, instruction: Instruction) -> End:
        if instruction.modifiers[0] != "idx":
            raise refuse(instruction)
        index = self.registers[function.name].read(instruction.operands[0], "u32")
        names = function.targets[instruction.operands[1].name]
        targets = [self._label(function, name) for name in names]

        def spread(group: Group) -> Outcome:
            parts = []
            for value in np.unique(index[group.lanes]):
                chosen = group.narrowed(index == value)
                assert chosen is not None
                parts.append((targets[int(value)], chosen))
            return parts

        return spread

    def _barrier(self, instruction: Instruction, following: int) -> End:
        (number, *_) = instruction.operands
        known = instruction.modifiers == ("sync",) and number.kind == "integer"
        if not known or len(instruction.operands) > 1:
            raise refuse(instruction)
        return lambda group: self.arrive(instruction, following, group)

    def _call(self, function: Function, instruction: Instruction, following: int) -> End:
        name = callee_of(instruction, self.functions)
        callee = self.functions[name]
        lists = [operand.parts for operand in instruction.operands if operand.kind == "list"]
        named = [operand.kind for operand in instruction.operands]
        results = lists.pop(0) if named and named[0] == "list" else ()
        arguments = lists.pop(0) if lists else ()
        if len(results) != len(callee.results) or len(arguments) != len(callee.parameters):
            raise refuse(instruction)
        own, theirs = self.registers[function.name].formal, self.registers[name].formal
        given = [
            (own[a.name], theirs[p.name], p.size)
            for a, p in zip(arguments, callee.parameters, strict=True)
        ]
        taken = [
            (theirs[p.name], own[r.name], p.size)
            for r, p in zip(results, callee.results, strict=True)
        ]
        first, back = self.starts[name][0], self.returns[name]
        self.landings[following] = lambda group: _copy(taken, group)

        def call(group: Group) -> Outcome:
            _copy(given, group)
            back[group.lanes] = following
            return first

        return call

    def _return(self, function: Function) -> End:
        back = self.returns[function.name]

        def leave(group: Group) -> Outcome:
            parts: list[tuple[int, Group]] = []
            for block in np.unique(back[group.lanes]):
                chosen = group.narrowed(back == block)
                assert chosen is not None
                self.landings[int(block)](chosen)
                parts.append((int(block), chosen))
            return parts[0][0] if len(parts) == 1 else parts

        return leave


def _always(block: int) -> End:
    return lambda group: block


def _leave(group: Group) -> Outcome:
    return []


def _copy(pairs: Sequence[tuple[np.ndarray, np.ndarray, int]], group: Group) -> None:
    for source, target, size in pairs:
        target[group.lanes, :size] = source[group.lanes, :size]


class Player:
    """steps: of instructions that a block may take before it is held to run for ever."""

    def __init__(self, ptx: str, memory: Memory, steps: int = 20_000_000) -> None:
        self.module = parse(ptx)
        self.memory, self.steps = memory, steps
        self.instructions = 0  # played so far
        self._kernels: dict[tuple[str, tuple[int, ...]], Kernel] = {}

    def entry(self, name: str) -> Function:
        """The kernel of this name, or the only one whose name contains it."""
        entries = [f for f in self.module.functions.values() if f.entry]
        exact = [f for f in entries if f.name == name]
        found = exact or [f for f in entries if name in f.name]
        if len(found) != 1:
            raise KeyError(f"{name} is in the name of {len(found)} kernels")
        return found[0]

    def launch(
        self,
        name: str,
        grid: Sequence[int],
        block: Sequence[int],
        arguments: Sequence[Any] | bytes,
        shared: int = 0,
    ) -> None:
        """arguments: tensors of the player's memory, numbers, or the parameters' bytes. shared:
        bytes of dynamic shared memory."""
        function = self.entry(name)
        extents = tuple((*block, 1, 1)[:3])
        if (function.name, extents) not in self._kernels:
            self._kernels[function.name, extents] = Kernel(self, function, extents)
        data = arguments if isinstance(arguments, bytes) else pack(function.parameters, arguments)
        with np.errstate(all="ignore"):
            self._kernels[function.name, extents].launch(tuple((*grid, 1, 1)[:3]), data, shared)


def pack(parameters: Sequence[Variable], arguments: Sequence[Any]) -> bytes:
    """Values as the bytes of a kernel's parameters; missing ones are zeros."""
    data = bytearray()
    for i, parameter in enumerate(parameters):
        data += bytes(-len(data) % parameter.alignment)
        value = arguments[i] if i < len(arguments) else 0
        if isinstance(value, Tensor):
            value = value.data_ptr()
        if isinstance(value, float):
            data += struct.pack("<f" if parameter.size == 4 else "<d", value)
        else:
            data += (int(value) % 256**parameter.size).to_bytes(parameter.size, "little")
    if len(arguments) > len(parameters):
        raise ValueError(f"{len(arguments)} arguments for {len(parameters)} parameters")
    return bytes(data)


class Kernel:
    """A kernel made ready for blocks of one shape."""

    def __init__(self, player: Player, entry: Function, extents: tuple[int, ...]) -> None:
        self.player, self.entry, self.extents = player, entry, extents
        self.memory = player.memory
        self.count = int(np.prod(extents))
        if self.count % WARP or self.count > self.memory.threads:
            raise UnknownForm(f"a block of {self.count} lanes")
        if entry.threads and self.count > entry.threads:
            raise Trap(f"{self.count} lanes in a block that is compiled for {entry.threads}")
        self.copies = Copies(self.memory, self.count)
        self.races = self.memory.races_of(self.count // WARP)
        self.everyone = Group.everyone(self.count)
        self.special = special_registers(extents)
        reached = callees_first(player.module.functions, entry.name)
        functions = {function.name: function for function in reached}
        self.static_shared = 0
        symbols = self._symbols(functions)
        self.registers = {}
        for name, function in functions.items():
            registers = Registers(function, self.memory, self.count, symbols, self.copies)
            registers.special = self.special
            formal = [v for v in function.variables if v.space == "param"]
            formal += [] if function.entry else [*function.parameters, *function.results]
            for v in formal:
                registers.formal[v.name] = np.zeros((self.count, -(-v.size // 16) * 16), np.uint8)
            self.registers[name] = registers
        self.code = Code(functions, entry.name, self.registers, self._arrive)

    def _symbols(self, functions: dict[str, Function]) -> dict[str, tuple[str, int]]:
        """Places of variables and parameters. Open arrays of shared memory are behind the rest."""
        symbols: dict[str, tuple[str, int]] = {}
        shared = [v for v in self.player.module.variables.values() if v.space == "shared"]
        local = FIRST_LOCAL
        for function in functions.values():
            shared += [v for v in function.variables if v.space == "shared"]
            for v in function.variables:
                if v.space == "local":
                    local = -(-local // v.alignment) * v.alignment
                    symbols[v.name] = ("local", local)
                    local += v.size
        if local > self.memory.local_bytes:
            raise UnknownForm(f"{local} bytes of local memory; give the player's memory more")
        end = 0
        for v in sorted(shared, key=lambda v: v.size == 0):
            end = -(-end // v.alignment) * v.alignment
            symbols[v.name] = ("shared", FIRST_SHARED + end)
            end += v.size
        self.static_shared = end
        at = 0
        for v in self.entry.parameters:
            at = -(-at // v.alignment) * v.alignment
            symbols[v.name] = ("param", at)
            at += v.size
        return symbols

    def launch(self, grid: tuple[int, ...], parameters: bytes, shared: int) -> None:
        for z, y, x in np.ndindex(grid[::-1]):
            for axis, index in zip("xyz", (x, y, z), strict=True):
                self.special[f"%ctaid.{axis}"][:] = index
            self.memory.start_block(self.races, self.static_shared + shared, parameters)
            self.copies.start()
            self._run((x, y, z))

    def _run(self, index: tuple[int, ...]) -> None:
        self.waiting: dict[int, Group] = {}
        self.barriers: dict[int, dict[int, tuple[Instruction, Group]]] = {}
        steps, blocks = 0, self.code.blocks
        at, group = self.code.first, self.everyone
        action = None
        block = blocks[at]
        try:
            while True:
                block = blocks[at]
                for action in block.actions:
                    action(group)
                action = None
                steps += len(block.actions) + 1
                if steps > self.player.steps:
                    raise Trap(f"still running after {steps} instructions")
                outcome = block.end(group)
                if isinstance(outcome, int) and not self.waiting:
                    at = outcome
                    continue
                self._await(outcome, group)
                if not self.waiting:
                    break
                at = min(self.waiting)
                group = self.waiting.pop(at)
            self._finish()
        except (Trap, UnknownForm) as error:
            instruction = block.last
            if action is not None:
                instruction = block.instructions[block.actions.index(action)]
            where = f"line {instruction.line}: {instruction.text}: " if instruction else ""
            raise type(error)(f"{self.entry.name}, block {index}, {where}{error}") from None
        finally:
            self.player.instructions += steps

    def _await(self, outcome: Outcome, group: Group) -> None:
        parts = [(outcome, group)] if isinstance(outcome, int) else outcome
        for at, part in parts:
            if at in self.waiting:
                part = Group(self.waiting[at].where | part.where)
            if part.where is not True and part.where.all():  # type: ignore[union-attr]
                part = self.everyone
            self.waiting[at] = part

    def _arrive(self, instruction: Instruction, following: int, group: Group) -> Outcome:
        number = instruction.operands[0].value
        sites = self.barriers.setdefault(number, {})
        where = group.where
        if following in sites:
            where = sites[following][1].where | where
        arrived = self.everyone if np.all(where) else Group(where)
        sites[following] = instruction, arrived
        if sum(len(there.lanes) for _, there in sites.values()) < self.count:
            return []
        if len(sites) > 1:
            lines = sorted(one.line for one, _ in sites.values())
            raise Trap(f"lanes meet at different barriers, of the lines {lines}")
        del self.barriers[number]
        self.memory.races.clear()
        return [(following, self.everyone)]

    def _finish(self) -> None:
        for sites in self.barriers.values():
            for instruction, there in sites.values():
                missing = np.ones(self.count, bool)
                missing[there.lanes] = False
                raise Trap(
                    f"the barrier of line {instruction.line} is reached by {len(there.lanes)} of "
                    f"{self.count} lanes; lane {int(np.flatnonzero(missing)[0])} is not among them"
                )


def special_registers(extents: tuple[int, ...]) -> dict[str, np.ndarray]:
    count = int(np.prod(extents))
    lane = np.arange(count, dtype=np.uint32)
    x, y, _ = extents
    full = {"%tid.x": lane % x, "%tid.y": lane // x % y, "%tid.z": lane // (x * y)}
    return full | {f"%ctaid.{axis}": np.zeros(count, np.uint32) for axis in "xyz"}
