"""Registry of instructions, by how each kind is played.

A form takes an instruction and the registers of its function, and returns a function of the group
of lanes that runs it. What it does not recognise it must refuse, by UnknownForm: a modifier that is
passed over would be a wrong result.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from tests.ptx.lanes import Group, Registers, full_name
from tests.ptx.parse import Instruction, UnknownForm

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
