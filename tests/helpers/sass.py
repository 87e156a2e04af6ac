"""Reading machine code: loops, their loads and waits, and where matrix instructions read.

cuobjdump prints each instruction with its control word, in which the compiler encodes for which
loads the warp waits before it issues it.
"""

from __future__ import annotations

import itertools
import re
import subprocess
from dataclasses import dataclass
from pathlib import Path

_LINE = re.compile(
    r"/\*([0-9a-f]{4,6})\*/\s+(?:(@!?U?PT?\d*)\s+)?([A-Z][\w.]*)\s*([^;]*);"
    r"\s*/\* 0x\w{16} \*/\s*/\* (0x\w{16}) \*/"
)
_BYTES = {"64": 8, "128": 16, "U16": 2, "S16": 2, "U8": 1, "S8": 1}
FLOP_PER_CLOCK = {"half": 4096, "tf32": 2048}  # of an SM's tensor cores


@dataclass(frozen=True)
class Instruction:
    """One line: "LDG.E.128" is the name, "R4, desc[UR8][R2.64]" the operands.

    control: 4 bits of stall, yield, 3 of the scoreboard on which a late result counts, 3, 6 of the
    scoreboards that must be empty.
    """

    address: int
    predicate: str
    name: str
    operands: str
    control: int

    @property
    def target(self) -> int | None:
        """Target of a branch."""
        if not self.name.startswith("BRA"):
            return None
        found = re.search(r"0x([0-9a-f]+)", self.operands)
        return int(found[1], 16) if found else None

    @property
    def bytes(self) -> int:
        """How much a load or a store of a thread moves: its name's suffix, 4 without one."""
        sizes = [_BYTES[part] for part in self.name.split(".") if part in _BYTES]
        return sizes[0] if sizes else 4

    def waits_for(self, load: Instruction) -> bool:
        return bool(self.control >> 11 + (load.control >> 5 & 7) & 1)


def disassemble(cubin: Path) -> str:
    """The machine code of the kernels in a cubin and their resources (REG, STACK), by cuobjdump."""
    from triton import knobs

    command = [knobs.nvidia.cuobjdump.path, "-sass", "-res-usage", str(cubin)]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def register_operand(line: Instruction) -> bool:
    """Whether A of an HGMMA lies in registers, not in shared memory.

    Triton 3.6 then touches registers of products that still run.
    """
    return line.name.startswith("HGMMA") and bool(re.match(r"R\d+, R\d+,", line.operands))


def parse(sass: str) -> list[Instruction]:
    """The instructions of what `cuobjdump -sass` prints of one kernel."""
    return [
        Instruction(int(m[1], 16), m[2] or "", m[3], m[4].strip(), int(m[5], 16) >> 41)
        for m in _LINE.finditer(sass)
    ]


def occurrences(code: list[Instruction], *names: str) -> int:
    """How many instructions have one of these names, such as "HMMA", without their suffixes."""
    return sum(line.name.split(".")[0] in names for line in code)


def loops(code: list[Instruction], around: str = "") -> list[list[Instruction]]:
    """Bodies from a branch backwards to its target: the innermost loops, or the smallest around
    each instruction of this name."""
    spans = [
        (line.target, line.address)
        for line in code
        if line.target is not None and line.target < line.address
    ]
    if around:
        held = [line.address for line in code if line.name.startswith(around)]
        holding = ([s for s in spans if s[0] <= at <= s[1]] for at in held)
        inner = {min(some, key=lambda s: s[1] - s[0]) for some in holding if some}
    else:
        inner = {(a, b) for a, b in spans if not any(a <= s[0] <= s[1] <= b != s[1] for s in spans)}
    return [[line for line in code if a <= line.address <= b] for a, b in sorted(inner)]


def until_wait(load: Instruction, loop: list[Instruction]) -> list[Instruction]:
    """The instructions of a loop behind a load, up to the first that waits for it."""
    at = loop.index(load)
    behind = loop[at + 1 :] + loop[: at + 1]
    end = next((i for i, line in enumerate(behind) if line.waits_for(load)), len(behind))
    return behind[:end]


def matrix_loops(code: list[Instruction]) -> list[list[Instruction]]:
    """The loops that multiply matrices."""
    return [body for body in loops(code) if any("MMA" in line.name for line in body)]


# A loop that multiplies what asynchronous copies bring waits for copies and meets the other warps,
# multiplies, waits for the products of the turn before and meets again, and copies over their
# operands.
WGMMA_LOOP = ["DEPBAR", "BAR", "HGMMA", "WARPGROUP.DEPBAR", "BAR", "LDGSTS"]


def phases(body: list[Instruction]) -> list[str]:
    """The copies, products, waits and barriers of a loop in their order, none twice in a row."""
    names = (re.findall(r"^(?:WARPGROUP\.)?\w+", line.name)[0] for line in body)
    return [name for name, _ in itertools.groupby(n for n in names if n in {*WGMMA_LOOP, "HMMA"})]


def left_in_flight(body: list[Instruction]) -> bool:
    """Whether a loop's wait for HGMMAs leaves those of this turn in flight, and no others."""
    waits = [line.operands for line in body if line.name.startswith("WARPGROUP.DEPBAR")]
    groups = sum(line.name == "WARPGROUP.ARRIVE" for line in body)
    return [int(wait.split()[-1], 16) for wait in waits] == [groups]


def narrow_loads(body: list[Instruction]) -> list[Instruction]:
    """Loads from global memory of less than 16 bytes a thread."""
    return [line for line in body if re.match(r"LDG(STS)?\.|LD\.", line.name) and line.bytes < 16]


def divisions(body: list[Instruction]) -> list[Instruction]:
    """Marks of an integer division by what is no constant: a reciprocal of a converted integer."""
    return [line for line in body if line.name.startswith(("I2F", "MUFU.RCP"))]


def tensor_clocks(body: list[Instruction]) -> float:
    """Clocks of an SM's tensor cores for the HGMMAs that a warpgroup issues in a loop's body."""
    clocks = 0.0
    for line in body:
        found = re.match(r"HGMMA\.64x(\d+)x(\d+)\.F\d+\.?(\w*)", line.name)
        if found:
            rate = FLOP_PER_CLOCK["tf32" if found[3] == "TF32" else "half"]
            clocks += 2 * 64 * int(found[1]) * int(found[2]) / rate
    return clocks
