"""Reading machine code of sm_90: loops, what they load, and matrix instructions in flight.

`HGMMA D, A, B, C` runs on while the program does: from its issue until a `WARPGROUP.DEPBAR` waits
for its group, which the last `HGMMA` of the group closes with `gsb0`. Until then its accumulator D
must not be touched, nor A be written where A lies in registers (B is always in shared memory).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

_LINE = re.compile(r"/\*([0-9a-f]{4,6})\*/\s+(?:(@!?U?PT?\d*)\s+)?([A-Z][\w.]*)\s*([^;]*);")
_NO_RESULT = (
    "ST", "BRA", "LDGSTS", "WARP", "BAR", "DEPBAR", "LDGDEPBAR", "RED", "EXIT", "CCTL", "MEMBAR",
    "FENCE", "NOP", "SYNCS", "UTM", "ERRBAR", "YIELD", "BSYNC", "BSSY", "CALL", "RET", "ARRIVES",
)  # fmt: skip
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

    def written(self) -> set[int]:
        """The registers of the result."""
        found = re.match(r"(?:U?PT?\d*, )*R(\d+)\b", self.operands)
        if self.name.startswith(_NO_RESULT) or not found:
            return set()
        count = 1
        if self.name.startswith("HGMMA"):
            count = accumulators(self.name)
        elif self.name.startswith("LDSM"):
            count = {"4": 4, "2": 2}.get(self.name[-1], 1)
        elif self.name.startswith(("LD", "ATOM")):
            count = max(1, self.bytes // 4)
        elif ".WIDE" in self.name or self.name.startswith(("DADD", "DMUL", "DFMA", "HMMA")):
            count = 4 if self.name.startswith("HMMA") else 2
        return set(range(int(found[1]), int(found[1]) + count))

    def read(self) -> set[int]:
        """The registers that the operands name beside the result: the first of several."""
        found = re.match(r"(?:U?PT?\d*, )*R\d+\b(?!\.)", self.operands)
        has_result = found is not None and not self.name.startswith(_NO_RESULT)
        rest = self.operands[found.end() :] if found is not None and has_result else self.operands
        return {int(number) for number in re.findall(r"(?<![A-Z])R(\d+)", rest)}


def accumulators(name: str) -> int:
    """Registers of the accumulator of an HGMMA, of 64 rows by N columns: N / 2, half in float16."""
    found = re.match(r"HGMMA\.64x(\d+)x\d+\.(F16|F32)", name)
    if found is None:
        raise ValueError(f"no matrix instruction: {name}")
    return int(found[1]) // (2 if found[2] == "F32" else 4)


def register_operand(instruction: Instruction) -> set[int]:
    """The registers of A of an HGMMA, four; none where A lies in shared memory."""
    found = re.match(r"R\d+, R(\d+),", instruction.operands)
    if not instruction.name.startswith("HGMMA") or found is None:
        return set()
    return set(range(int(found[1]), int(found[1]) + 4))


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


@dataclass(frozen=True)
class Hazard:
    """`line` touches registers of `multiply`, which may still be running."""

    multiply: Instruction
    line: Instruction


# Groups of places of HGMMAs, oldest first; the last one is still open.
_State = tuple[frozenset[int], ...]


def hazards(code: list[Instruction]) -> list[Hazard]:
    """Every pair found on any path through the program."""
    found: dict[tuple[int, int], Hazard] = {}
    places = {line.address: i for i, line in enumerate(code)}
    seen: set[tuple[int, _State]] = set()
    paths: list[tuple[int, _State]] = [(0, (frozenset(),))]
    while paths:
        i, state = paths.pop()
        while i < len(code) and (i, state) not in seen:
            if code[i].target is not None or i == 0:
                seen.add((i, state))
            line = code[i]
            for j in _touched(code, line, state):
                found[j, i] = Hazard(code[j], line)
            state = _after(line, i, state)
            target = places.get(line.target) if line.target is not None else None
            if line.name.startswith("EXIT") and not line.predicate:
                break
            if target is not None and line.predicate:
                paths.append((target, state))
            elif target is not None:
                i = target - 1
            i += 1
    return list(found.values())


def _after(line: Instruction, i: int, state: _State) -> _State:
    """The groups in flight after a line."""
    if line.name.startswith("HGMMA"):
        state = (*state[:-1], state[-1] | {i})
        return (*state, frozenset()) if "gsb0" in line.operands else state
    if line.name.startswith("WARPGROUP.DEPBAR"):
        closed, left = state[:-1], int(line.operands.rsplit("0x", 1)[1], 16)
        return (*(closed[-left:] if left else ()), state[-1])
    return state


def _touched(code: list[Instruction], line: Instruction, state: _State) -> Iterator[int]:
    """Which matrix instructions in flight a line disturbs."""
    running = sorted(set().union(*state))
    if not running:
        return
    written, read = line.written(), line.read()
    if line.name.startswith("HGMMA"):
        # Accumulating into the same registers is done in order; A must be there at the issue.
        written, read = set(), register_operand(line)
    for j in running:
        result = code[j].written()
        if written & (result | register_operand(code[j])) or read & result:
            yield j
