"""Play a compiled kernel: all lanes of a block together, block after block.

    memory = Memory()
    x, y = memory.place(x), memory.empty(x.shape, once=True)
    Player(ptx, memory).launch("kernel_name", grid=(4,), block=(128,), arguments=[x, y, x.numel()])

It raises Trap for what a kernel must not do, and UnknownForm for what it cannot play.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tests.ptx import access, bits, choices, conversions, floats, integers, matrices, warps
from tests.ptx.blocks import Code, Outcome, callees_first
from tests.ptx.copies import Copies
from tests.ptx.lanes import Group, Registers
from tests.ptx.layout import FIRST_SHARED, WARP, Trap
from tests.ptx.memory import OPEN, READABLE, Memory
from tests.ptx.parse import Function, Instruction, Module, UnknownForm, Variable, parse

# Imported for the forms that they register.
KINDS = (access, bits, choices, conversions, floats, integers, matrices, warps)
FIRST_LOCAL = 16


class Player:
    """steps: of instructions that a block may take before it is held to run for ever."""

    def __init__(self, ptx: str | Module, memory: Memory, steps: int = 20_000_000) -> None:
        self.module = parse(ptx) if isinstance(ptx, str) else ptx
        self.memory, self.steps = memory, steps
        self.instructions = 0  # played so far
        self._kernels: dict[tuple[str, tuple[int, ...]], Kernel] = {}
        self.variables = {
            name: self._place_variable(variable)
            for name, variable in self.module.variables.items()
            if variable.space in ("global", "const")
        }

    def _place_variable(self, variable: Variable) -> int:
        tensor = self.memory.empty(
            (variable.size,), torch.uint8, alignment=max(variable.alignment, 16)
        )
        data = variable.initial.ljust(variable.size, b"\0")
        tensor.copy_(torch.frombuffer(bytearray(data), dtype=torch.uint8))
        self.memory.mark(tensor, READABLE | (OPEN if variable.space == "global" else 0))
        return tensor.data_ptr() - self.memory.base

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
    """Values as the bytes of a kernel's parameters; those that are missing are zeros."""
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
        symbols = {name: ("global", place) for name, place in self.player.variables.items()}
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
        for axis, extent in zip("xyz", grid, strict=True):
            self.special[f"%nctaid.{axis}"][:] = extent
        self.special["%dynamic_smem_size"][:] = shared
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
        if len(instruction.operands) > 1 and instruction.operands[1].value != self.count:
            raise UnknownForm(f"{instruction.text}: a barrier of a part of the block")
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
    for axis, extent in zip("xyz", extents, strict=True):
        full[f"%ntid.{axis}"] = np.full(count, extent)
        full[f"%ctaid.{axis}"] = np.zeros(count)
        full[f"%nctaid.{axis}"] = np.ones(count)
    in_warp = lane % WARP
    bit = np.uint32(1) << in_warp
    full |= {
        "%laneid": in_warp, "%warpid": lane // WARP, "%nwarpid": np.full(count, count // WARP),
        "%lanemask_eq": bit, "%lanemask_lt": bit - 1, "%lanemask_le": bit | (bit - 1),
        "%lanemask_gt": ~(bit | (bit - 1)), "%lanemask_ge": ~(bit - 1),
        "%smid": np.zeros(count), "%nsmid": np.ones(count), "%dynamic_smem_size": np.zeros(count),
    }  # fmt: skip
    return {name: np.ascontiguousarray(values, np.uint32) for name, values in full.items()}
