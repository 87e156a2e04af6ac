"""Reading machine code of sm_90: loops, what they load, and where matrix instructions read."""

from __future__ import annotations

import re
from dataclasses import dataclass

_LINE = re.compile(r"/\*([0-9a-f]{4,6})\*/\s+(?:(@!?U?PT?\d*)\s+)?([A-Z][\w.]*)\s*([^;]*);")
_BYTES = {"64": 8, "128": 16, "U16": 2, "S16": 2, "U8": 1, "S8": 1}
FLOP_PER_CLOCK = {"half": 4096, "tf32": 2048}  # of an SM's tensor cores


@dataclass(frozen=True)
class Instruction:
    """One line: "LDG.E.128" is the name, "R4, desc[UR8][R2.64]" the operands."""

    address: int
    predicate: str
    name: str
    operands: str

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


def register_operand(line: Instruction) -> bool:
    """Whether A of an HGMMA lies in registers, not in shared memory.

    Triton 3.6 then touches registers of products that still run.
    """
    return line.name.startswith("HGMMA") and bool(re.match(r"R\d+, R\d+,", line.operands))


def parse(sass: str) -> list[Instruction]:
    """The instructions of what `cuobjdump -sass` prints of one kernel."""
    return [
        Instruction(int(m[1], 16), m[2] or "", m[3], m[4].strip()) for m in _LINE.finditer(sass)
    ]


def loops(code: list[Instruction]) -> list[list[Instruction]]:
    """The bodies of innermost loops: from a branch backwards to its target."""
    spans = [
        (line.target, line.address)
        for line in code
        if line.target is not None and line.target < line.address
    ]
    inner = [
        (first, last)
        for first, last in spans
        if not any((a, b) != (first, last) and first <= a and b <= last for a, b in spans)
    ]
    return [[line for line in code if a <= line.address <= b] for a, b in inner]


def matrix_loops(code: list[Instruction]) -> list[list[Instruction]]:
    """The loops that multiply matrices."""
    return [body for body in loops(code) if any("MMA" in line.name for line in body)]


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
