"""Reading machine code: its instructions, the loops that multiply matrices and their waits."""

from __future__ import annotations

import re
import subprocess
from dataclasses import dataclass
from pathlib import Path

_LINE = re.compile(
    r"/\*([0-9a-f]{4,6})\*/\s+(?:@!?U?PT?\d*\s+)?([A-Z][\w.]*)\s*([^;]*);"
    r"\s*/\* 0x\w{16} \*/\s*/\* 0x\w{16} \*/"
)


@dataclass(frozen=True)
class Instruction:
    """One line: "LDG.E.128" is the name, "R4, desc[UR8][R2.64]" the operands."""

    address: int
    name: str
    operands: str

    @property
    def target(self) -> int | None:
        """Target of a branch."""
        if not self.name.startswith("BRA"):
            return None
        found = re.search(r"0x([0-9a-f]+)", self.operands)
        return int(found[1], 16) if found else None


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
    return [Instruction(int(m[1], 16), m[2], m[3].strip()) for m in _LINE.finditer(sass)]


def loops(code: list[Instruction]) -> list[list[Instruction]]:
    """Bodies of the innermost loops: from a branch backwards to its target."""
    spans = [
        (line.target, line.address)
        for line in code
        if line.target is not None and line.target < line.address
    ]
    inner = {(a, b) for a, b in spans if not any(a <= s[0] <= s[1] <= b != s[1] for s in spans)}
    return [[line for line in code if a <= line.address <= b] for a, b in sorted(inner)]


def matrix_loops(code: list[Instruction]) -> list[list[Instruction]]:
    """The loops that multiply matrices."""
    return [body for body in loops(code) if any("MMA" in line.name for line in body)]


def left_in_flight(body: list[Instruction]) -> bool:
    """Whether a loop's wait for HGMMAs leaves those of this turn in flight, and no others."""
    waits = [line.operands for line in body if line.name.startswith("WARPGROUP.DEPBAR")]
    groups = sum(line.name == "WARPGROUP.ARRIVE" for line in body)
    return [int(wait.split()[-1], 16) for wait in waits] == [groups]
