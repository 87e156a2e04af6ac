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
from functools import partial
from typing import Any

import numpy as np
from torch import Tensor

from tests.ptx import arithmetic, warps
from tests.ptx.lanes import Action, Group, Registers, translate
from tests.ptx.memory import FIRST_SHARED, LANES, LOCAL_BYTES, WARP, Copies, Memory, Trap
from tests.ptx.parse import Function, Instruction, UnknownForm, Variable, parse

# Imported for the forms that they register.
KINDS = (arithmetic, warps)
FIRST_LOCAL = 16

# The block where all lanes of a group go, or parts of the group with the block of each.
Outcome = int | list[tuple[int, Group]]
End = Callable[[Group], Outcome]
ENDS = {"bra", "bra.uni", "brx.idx", "call.uni", "bar.sync", "ret"}


@dataclass
class Block:
    actions: list[Action] = field(default_factory=list)
    instructions: list[Instruction] = field(default_factory=list)
    end: End = lambda group: []
    last: Instruction | None = None  # what ends it, unless it runs on into the next


def callees_first(functions: dict[str, Function], entry: str) -> list[Function]:
    order: list[Function] = []

    def visit(function: Function) -> None:
        for instruction in function.code:
            if instruction.name == "call.uni":
                visit(callee_of(instruction, functions))
        if function not in order:
            order.append(function)

    visit(functions[entry])
    return order


def callee_of(instruction: Instruction, functions: dict[str, Function]) -> Function:
    (name,) = (operand.name for operand in instruction.operands if operand.kind == "name")
    return functions[name]


class Code:
    """All blocks of a kernel, numbered; callees come before their callers.

    So the lowest number among lanes that parted is the deepest call and there the place that lies
    furthest back: who runs it first lets them meet again. arrive: what a barrier does with the
    lanes that reach it, given its instruction and the block after it.
    """

    def __init__(
        self,
        functions: dict[str, Function],
        order: list[Function],
        registers: dict[str, Registers],
        arrive: Callable[[Instruction, int, Group], Outcome],
    ) -> None:
        self.functions, self.registers, self.arrive = functions, registers, arrive
        self.blocks: list[Block] = []
        self.starts: dict[str, dict[int, int]] = {}  # of a function: index into its code, block
        self.returns: dict[str, np.ndarray] = {}  # for each lane the block to continue with
        self.landings: dict[int, Action] = {}  # what fetches a result before that block
        for function in order:
            starts = {0, *function.labels.values(), len(function.code)}
            starts |= {i + 1 for i, code in enumerate(function.code) if code.name in ENDS}
            first = len(self.blocks)
            self.starts[function.name] = {s: first + i for i, s in enumerate(sorted(starts))}
            self.blocks += [Block() for _ in starts]
            self.returns[function.name] = np.zeros(registers[function.name].count, np.int64)
        for function in order:
            self._fill(function)
        self.first = self.starts[order[-1].name][0]

    def _fill(self, function: Function) -> None:
        starts = self.starts[function.name]
        block = self.blocks[starts[0]]
        for i, instruction in enumerate(function.code):
            if i in starts:
                if block is not self.blocks[starts[i]] and block.last is None:
                    block.end = _always(starts[i])
                block = self.blocks[starts[i]]
            if instruction.name in ENDS:
                block.last = instruction
                block.end = self._end(function, instruction, starts[i + 1])
            else:
                block.actions.append(translate(instruction, self.registers[function.name]))
                block.instructions.append(instruction)

    def _end(self, function: Function, instruction: Instruction, following: int) -> End:
        name = instruction.name
        if name.startswith("bra"):
            end = _always(self._label(function, instruction.operands[0].name))
        elif name == "brx.idx":
            index = self.registers[function.name].read(instruction.operands[0], "u32")
            names = function.targets[instruction.operands[1].name]
            targets = np.array([self._label(function, name) for name in names])
            end = partial(_branch, targets, index)
        elif name == "call.uni":
            end = self._call(function, instruction, following)
        elif name == "bar.sync":
            whole = len(instruction.operands) == 1 and instruction.operands[0].kind == "number"
            if instruction.predicate or not whole:
                raise UnknownForm(f"{instruction.text} (line {instruction.line})")
            end = lambda group: self.arrive(instruction, following, group)  # noqa: E731
        else:
            end = self._return(function)
        if instruction.predicate:
            return self._guarded(function, instruction, end, following)
        return end

    def _label(self, function: Function, name: str) -> int:
        return self.starts[function.name][function.labels[name]]

    def _guarded(
        self, function: Function, instruction: Instruction, end: End, following: int
    ) -> End:
        holds = self.registers[function.name].predicate(instruction)

        def parted(group: Group) -> Outcome:
            truth = holds()
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

    def _call(self, function: Function, instruction: Instruction, following: int) -> End:
        callee = callee_of(instruction, self.functions)
        lists = [operand.parts for operand in instruction.operands if operand.kind == "parts"]
        results = lists.pop(0) if callee.results else ()
        arguments = lists.pop(0) if lists else ()
        own, formals = self.registers[function.name].formal, self.registers[callee.name].formal
        given = [
            (own[a.name], formals[p.name], p.size)
            for a, p in zip(arguments, callee.parameters, strict=True)
        ]
        results = [
            (formals[p.name], own[r.name], p.size)
            for r, p in zip(results, callee.results, strict=True)
        ]
        first, back = self.starts[callee.name][0], self.returns[callee.name]
        self.landings[following] = lambda group: _copy(results, group)

        def call(group: Group) -> Outcome:
            _copy(given, group)
            back[group.lanes] = following
            return first

        return call

    def _return(self, function: Function) -> End:
        if function.entry:
            return lambda group: []
        back = self.returns[function.name]

        def leave(group: Group) -> Outcome:
            parts = _apart(group, back)
            for block, chosen in parts:
                self.landings[block](chosen)
            return parts[0][0] if len(parts) == 1 else parts

        return leave


def _always(block: int) -> End:
    return lambda group: block


def _branch(targets: np.ndarray, index: np.ndarray, group: Group) -> Outcome:
    if (most := int(index[group.lanes].max())) >= len(targets):
        raise Trap(f"a branch to target {most} of {len(targets)}")
    return _apart(group, targets[np.minimum(index, len(targets) - 1)])


def _apart(group: Group, blocks: np.ndarray) -> list[tuple[int, Group]]:
    """Parts of a group by the block where each lane continues."""
    chosen = ((int(block), group.narrowed(blocks == block)) for block in np.unique(blocks))
    return [(block, part) for block, part in chosen if part is not None]


def _copy(pairs: Sequence[tuple[np.ndarray, np.ndarray, int]], group: Group) -> None:
    for source, target, size in pairs:
        target[group.lanes, :size] = source[group.lanes, :size]


class Player:
    """steps: of instructions that a block may take before it is held to run for ever."""

    def __init__(self, ptx: str, memory: Memory, steps: int = 20_000_000) -> None:
        self.functions, self.variables = parse(ptx)
        self.memory, self.steps = memory, steps
        self._kernels: dict[tuple[Any, ...], Kernel] = {}

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
        entry, key = self.functions[name], (name, *block)
        if key not in self._kernels:
            self._kernels[key] = Kernel(self, entry, block)
        data = arguments if isinstance(arguments, bytes) else pack(entry.parameters, arguments)
        with np.errstate(all="ignore"):
            self._kernels[key].launch(tuple((*grid, 1, 1)[:3]), data, shared)


def pack(parameters: Sequence[Variable], arguments: Sequence[Any]) -> bytes:
    """Values as the bytes of a kernel's parameters; missing ones, Triton's own, are zeros."""
    if len(arguments) > len(parameters):
        raise ValueError(f"{len(arguments)} arguments for {len(parameters)} parameters")
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
    return bytes(data)


class Kernel:
    """A kernel made ready for blocks of one shape."""

    def __init__(self, player: Player, entry: Function, block: Sequence[int]) -> None:
        self.entry, self.steps, self.memory = entry, player.steps, player.memory
        self.count = block[0]
        if self.count % WARP or self.count > LANES or max(block[1:], default=1) > 1:
            raise UnknownForm(f"a block of {block} lanes")
        if entry.threads and self.count > entry.threads:
            raise Trap(f"{self.count} lanes in a block that is compiled for {entry.threads}")
        self.copies = Copies(self.memory, self.count)
        self.everyone = Group.everyone(self.count)
        self.special = {f"%ctaid.{axis}": np.zeros(self.count, np.uint32) for axis in "xyz"}
        self.special["%tid.x"] = np.arange(self.count, dtype=np.uint32)
        order = callees_first(player.functions, entry.name)
        self.static_shared, symbols = place_variables(player.variables, order)
        self.registers = {}
        for function in order:
            registers = Registers(
                function, self.memory, self.count, symbols, self.special, self.copies
            )
            formal = [v for v in function.variables if v.space == "param"]
            formal += [] if function.entry else [*function.parameters, *function.results]
            for v in formal:
                registers.formal[v.name] = np.zeros((self.count, -(-v.size // 16) * 16), np.uint8)
            self.registers[function.name] = registers
        self.code = Code(player.functions, order, self.registers, self._arrive)

    def launch(self, grid: tuple[int, ...], parameters: bytes, shared: int) -> None:
        for z, y, x in np.ndindex(grid[::-1]):
            for axis, index in zip("xyz", (x, y, z), strict=True):
                self.special[f"%ctaid.{axis}"][:] = index
            self.memory.start_block(self.static_shared + shared, parameters)
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
                if steps > self.steps:
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

    def _await(self, outcome: Outcome, group: Group) -> None:
        parts = [(outcome, group)] if isinstance(outcome, int) else outcome
        for at, part in parts:
            self.waiting[at] = self._joined(part, self.waiting.get(at))

    def _joined(self, group: Group, other: Group | None) -> Group:
        where = group.where if other is None else other.where | group.where
        return self.everyone if np.all(where) else Group(where)

    def _arrive(self, instruction: Instruction, following: int, group: Group) -> Outcome:
        sites = self.barriers.setdefault(instruction.operands[0].value, {})
        there = sites.get(following, (instruction, None))[1]
        sites[following] = instruction, self._joined(group, there)
        if sum(len(there.lanes) for _, there in sites.values()) < self.count:
            return []
        if len(sites) > 1:
            lines = sorted(barrier.line for barrier, _ in sites.values())
            raise Trap(f"lanes meet at different barriers, of the lines {lines}")
        sites.clear()
        self.memory.races.clear()
        return [(following, self.everyone)]

    def _finish(self) -> None:
        for sites in self.barriers.values():
            for instruction, there in sites.values():
                missing = np.setdiff1d(self.everyone.lanes, there.lanes)
                raise Trap(
                    f"the barrier of line {instruction.line} is reached by {len(there.lanes)} of "
                    f"{self.count} lanes; lane {missing[0]} is not among them"
                )


def place_variables(
    outside: list[Variable], functions: list[Function]
) -> tuple[int, dict[str, tuple[str, int]]]:
    """Bytes of static shared memory, and the space and place of variables and parameters by name.

    functions: the kernel is the last. Open arrays of shared memory come last.
    """
    inside = [v for function in functions for v in function.variables]
    shared = [v for v in [*outside, *inside] if v.space == "shared"]
    ends = {"shared": FIRST_SHARED, "local": FIRST_LOCAL, "param": 0}
    symbols: dict[str, tuple[str, int]] = {}
    for v in (
        *sorted(shared, key=lambda v: v.size == 0),
        *(v for v in inside if v.space == "local"),
        *functions[-1].parameters,
    ):
        at = -(-ends[v.space] // v.alignment) * v.alignment
        symbols[v.name], ends[v.space] = (v.space, at), at + v.size
    if ends["local"] > LOCAL_BYTES:
        raise UnknownForm(f"{ends['local']} bytes of local memory")
    return ends["shared"] - FIRST_SHARED, symbols
