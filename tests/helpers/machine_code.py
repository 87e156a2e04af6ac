"""The machine code of a kernel as blocks and edges, and what its control words say of its time.

`nvdisasm` prints each instruction with its control word, in which the compiler encodes how many
cycles the warp waits before it issues the next one. Their sum along a path is a lower bound of the
path's time: it knows nothing of loads that are waited for by a scoreboard, or of other warps.
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

_LABEL = re.compile(r"^(\.L_x_\d+):")
_FUNCTION = re.compile(r"^\s*(?:\.text\.)?([\w$]+):")
_INSTRUCTION = re.compile(
    r"/\*[0-9a-f]{4,}\*/\s+(?:(@!?U?P\w+)\s+)?([A-Z]\w*(?:\.\w+)*)\s*(.*?)\s*;"
    r"\s*/\* (0x[0-9a-f]{16})"
)
_UPPER_HALF = re.compile(r"^\s*/\* (0x[0-9a-f]{16}) \*/")
_TARGET = re.compile(r"\(?`?\(?(\.L_x_\d+)\)?")
_CONTROL_BIT = 41  # of the upper half


@dataclass
class Instruction:
    """One instruction; `stall` in cycles.

    Its result, if it comes late, counts on the scoreboard `sets` (7: none); the instruction waits
    until those of `waits` are empty.
    """

    predicate: str | None
    name: str
    operands: str
    stall: int = 0
    sets: int = 7
    waits: frozenset[int] = frozenset()

    def control(self, word: int) -> None:
        """Read the control word: 4 bits of stall, yield, 3 of `sets`, 3, 6 of `waits`."""
        self.stall, self.sets = word & 15, word >> 5 & 7
        self.waits = frozenset(i for i in range(6) if word >> 11 + i & 1)


@dataclass(eq=False)
class Block:
    """Instructions that run one after the other, and the blocks that may follow."""

    instructions: list[Instruction] = field(default_factory=list)
    next: list[Block] = field(default_factory=list)

    @property
    def stall(self) -> int:
        """Cycles."""
        return sum(max(1, i.stall) for i in self.instructions)

    def count(self, *names: str) -> int:
        """How many instructions have one of these names, without their suffixes."""
        return sum(i.name.split(".")[0] in names for i in self.instructions)


def disassemble(nvdisasm: str, cubin: Path) -> str:
    """The machine code of a cubin, with control words."""
    command = [nvdisasm, "-c", "-hex", str(cubin)]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def functions(text: str) -> dict[str, list[Block]]:
    """The blocks of each function, kernels and functions that they call, first block first."""
    found: dict[str, list[Block]] = {}
    labels: dict[str, Block] = {}
    blocks: list[Block] = []
    last: Instruction | None = None
    for line in text.splitlines():
        if label := _LABEL.match(line):
            if blocks[-1].instructions:
                blocks.append(Block())
            labels[label[1]] = blocks[-1]
        elif m := _INSTRUCTION.search(line):
            # sm_80 leaves some loops by a call of a label, which never comes back.
            jumps = m[2].startswith("CALL") and _TARGET.search(m[3])
            last = Instruction(m[1], "BRA" if jumps else m[2], m[3])
            blocks[-1].instructions.append(last)
            if last.name.split(".")[0] in ("BRA", "EXIT", "RET", "BSYNC", "BRX"):
                blocks.append(Block())
        elif (m := _UPPER_HALF.match(line)) and last is not None:
            last.control(int(m[1], 16) >> _CONTROL_BIT)
            last = None
        elif (m := _FUNCTION.match(line)) and not line.startswith("."):
            blocks = found[m[1]] = [Block()]
    for own in found.values():
        _connect(own, labels)
    return found


def _connect(blocks: list[Block], labels: dict[str, Block]) -> None:
    for block, following in zip(blocks, [*blocks[1:], None], strict=True):
        if not block.instructions:
            continue
        last = block.instructions[-1]
        kind = last.name.split(".")[0]
        assert kind != "BRX", "an indirect branch"
        # Lanes that have lost each other meet again elsewhere: not on the way of a whole warp.
        divergent = last.name.startswith("BRA.DIV")
        if kind == "BRA" and not divergent and (target := _TARGET.search(last.operands)):
            block.next.append(labels[target[1]])
        ends = kind in ("BRA", "EXIT", "RET") and last.predicate is None and not divergent
        if following is not None and not (ends and "P" not in last.operands.split("`")[0]):
            block.next.append(following)


def reachable(start: Block, stop: Callable[[Block], bool]) -> list[Block]:
    """The blocks behind `start` up to those where `stop` holds, each before those behind it.

    Edges that lead back are not followed, so it is the order of one pass through every loop.
    """
    order: list[Block] = []
    seen = {id(start)}
    stack: list[tuple[Block, Iterator[Block]]] = [(start, iter(start.next))]
    while stack:
        block, rest = stack[-1]
        for following in rest if block is start or not stop(block) else ():
            if id(following) not in seen:
                seen.add(id(following))
                stack.append((following, iter(following.next)))
                break
        else:
            order.append(block)
            stack.pop()
    return order[-2::-1]  # without `start`, which ends first


def longest_path(start: Block, stop: Callable[[Block], bool]) -> list[Block]:
    """The way from the end of `start` through most cycles to a block where `stop` holds, with it.

    It may come back to `start`; every other loop is passed once. Empty if there is none.
    """
    order = reachable(start, stop)
    place = {id(block): i for i, block in enumerate(order)}
    best: dict[int, tuple[int, list[Block]]] = {}

    def onward(block: Block, i: int) -> tuple[int, list[Block]]:
        ways = [best[j] for n in block.next if (j := place.get(id(n), -1)) > i and best[j][1]]
        if block is not start and any(n is start for n in block.next):
            ways.append((start.stall, [start]))
        return max(ways, key=lambda way: way[0], default=(0, []))

    for i in range(len(order) - 1, -1, -1):
        block = order[i]
        if stop(block):
            best[i] = (block.stall, [block])
        else:
            cycles, way = onward(block, i)
            best[i] = (cycles + block.stall, [block, *way]) if way else (0, [])
    return onward(start, -1)[1]


def early_waits(load: Instruction, blocks: list[Block]) -> list[str]:
    """Names of instructions that wait for the scoreboard of `load` before the next barrier.

    blocks: those of the function, in order; edges that lead back are not followed.
    """
    place = {id(block): i for i, block in enumerate(blocks)}
    (first,) = (b for b in blocks if any(i is load for i in b.instructions))
    found, seen, stack = [], {id(first)}, [first]
    while stack:
        block = stack.pop()
        behind = block.instructions
        if block is first:
            behind = behind[next(i for i, other in enumerate(behind) if other is load) + 1 :]
        for instruction in behind:
            if instruction.name.startswith("BAR"):
                break
            if load.sets in instruction.waits:
                found.append(instruction.name)
        else:
            ahead = [n for n in block.next if id(n) not in seen and place[id(n)] > place[id(block)]]
            seen.update(map(id, ahead))
            stack.extend(ahead)
    return found


def hidden_by(load: Instruction, loop: Block, name: str) -> int:
    """How many instructions called so stand between a load of a loop and the first wait for it."""
    at = next(i for i, other in enumerate(loop.instructions) if other is load)
    count = 0
    for instruction in loop.instructions[at + 1 :] + loop.instructions[: at + 1]:
        if load.sets in instruction.waits:
            break
        count += instruction.name.split(".")[0] == name
    return count
