"""The code of a kernel in basic blocks: runs of actions, and where lanes go behind them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from tests.ptx.forms import Action, refuse, translate
from tests.ptx.lanes import Group, Registers
from tests.ptx.parse import Function, Instruction, UnknownForm

# The block where all lanes of a group go, or parts of the group with the block of each.
Outcome = int | list[tuple[int, Group]]
End = Callable[[Group], Outcome]
ENDS = {"bra", "brx", "call", "ret", "exit", "barrier", "trap"}


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
        elif opcode in ("bar", "barrier"):
            end = self._barrier(instruction, following)
        elif opcode == "ret" and not function.entry:
            end = self._return(function)
        elif opcode in ("ret", "exit"):
            end = _leave
        else:
            raise refuse(instruction)
        if instruction.predicate is None:
            return end
        if opcode in ("bar", "barrier"):
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
        known = instruction.modifiers in (("sync",), ("sync", "aligned"), ("cta", "sync"))
        if not known or len(instruction.operands) not in (1, 2):
            raise refuse(instruction)
        if any(operand.kind != "integer" for operand in instruction.operands):
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
