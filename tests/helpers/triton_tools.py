"""How Triton kernels are proven without a GPU: compiled ahead of time, and their launches recorded.

`record_launches` replaces kernels for a while and keeps their calls; `compile_launch` compiles one
as Triton would on a GPU, and reads the result. Triton is imported by the functions, so that a test
module can skip without it.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

WARP_SIZE = 32
Type = str | tuple["Type", ...]
Place = tuple[int, ...]  # the number of a parameter; in a tuple, those of its parts too
LAUNCH_OPTIONS = {"num_warps": 4, "num_stages": 3}  # not parameters of a kernel; Triton's defaults
DTYPES = {
    torch.bfloat16: "bf16",
    torch.float16: "fp16",
    torch.float32: "fp32",
    torch.float64: "fp64",
    torch.int64: "i64",
    torch.int32: "i32",
    torch.uint8: "u8",
}


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


def register_operand(line: Instruction) -> bool:
    """Whether A of an HGMMA lies in registers, not in shared memory.

    Triton 3.6 then touches registers of products that still run.
    """
    return line.name.startswith("HGMMA") and bool(re.match(r"R\d+, R\d+,", line.operands))


def matrix_loops(code: list[Instruction]) -> list[list[Instruction]]:
    """Bodies of the innermost loops, from a branch backwards to its target, that have matmuls."""
    spans = [
        (line.target, line.address)
        for line in code
        if line.target is not None and line.target < line.address
    ]
    inner = {(a, b) for a, b in spans if not any(a <= s[0] <= s[1] <= b != s[1] for s in spans)}
    bodies = ([line for line in code if a <= line.address <= b] for a, b in sorted(inner))
    return [body for body in bodies if any("MMA" in line.name for line in body)]


def left_in_flight(body: list[Instruction]) -> bool:
    """Whether a loop's wait for HGMMAs leaves those of this turn in flight, and no others."""
    waits = [line.operands for line in body if line.name.startswith("WARPGROUP.DEPBAR")]
    groups = sum(line.name == "WARPGROUP.ARRIVE" for line in body)
    return [int(wait.split()[-1], 16) for wait in waits] == [groups]


@dataclass(frozen=True)
class Compiled:
    """A compiled kernel.

    stack: bytes of a thread that did not fit its registers; local: instructions that load or store
    them (LDL, STL). shared: bytes of a block. sass: the machine code as cuobjdump prints it.
    """

    stack: int
    local: int
    shared: int
    sass: str
    ptx: str

    @cached_property
    def code(self) -> list[Instruction]:
        """The machine code, line by line."""
        return [Instruction(int(m[1], 16), m[2], m[3].strip()) for m in _LINE.finditer(self.sass)]

    def count(self, instruction: str) -> int:
        """How many instructions of the machine code have this name, such as "HMMA"."""
        return sum(line.name.split(".")[0] == instruction for line in self.code)


@dataclass(frozen=True)
class Launch:
    """One call of a kernel by its launcher."""

    kernel: Any
    grid: tuple[int, ...]
    arguments: dict[str, Any]  # of the kernel, by name
    options: dict[str, int]  # num_warps, num_stages


def specialise(launch: Launch) -> tuple[dict[str, Type], dict[Place, Any], list[Place]]:
    """Types of all parameters, constants, and multiples of 16, as Triton derives them.

    A number that is 1 and None become constants. A tuple has a tuple of types.
    """
    constants: dict[Place, Any] = {}
    multiples: list[Place] = []

    def type_of(place: Place, value: Any) -> Type:
        if isinstance(value, tuple):
            return tuple(type_of((*place, i), part) for i, part in enumerate(value))
        if value is None or (type(value) is int and value == 1):
            constants[place] = value
            return "constexpr"
        number = value.data_ptr() if isinstance(value, Tensor) else value
        if type(number) is int and number % 16 == 0:
            multiples.append(place)
        if isinstance(value, Tensor):
            return f"*{DTYPES[value.dtype]}"
        if isinstance(value, int) and not isinstance(value, bool):
            return "i32" if -(2**31) <= value < 2**31 else "i64"
        return {bool: "u1", float: "fp32"}[type(value)]

    types: dict[str, Type] = {}
    for i, parameter in enumerate(launch.kernel.params):
        value = launch.arguments[parameter.name]
        if parameter.is_constexpr:
            constants[i,] = value
        types[parameter.name] = "constexpr" if parameter.is_constexpr else type_of((i,), value)
    return types, constants, multiples


def compile_kernel(launch: Launch, arch: int) -> Any:
    """Compile what `launch` would make Triton compile for CUDA compute capability `arch`.

    Multiplications and additions are fused, as launchers must ask for by name: versions of Triton
    differ in their default.
    """
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource, compile

    types, constants, multiples = specialise(launch)
    attributes = {place: [["tt.divisibility", 16]] for place in multiples}
    return compile(
        ASTSource(launch.kernel, types, constants, attributes),
        target=GPUTarget("cuda", arch, WARP_SIZE),
        options={**launch.options, "enable_fp_fusion": True},
    )


def compile_launch(launch: Launch, arch: int) -> Compiled:
    """`compile_kernel`, and what is to be read in its machine code, by cuobjdump."""
    from triton import knobs

    compiled = compile_kernel(launch, arch)
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        Path(file.name).write_bytes(compiled.asm["cubin"])
        command = [knobs.nvidia.cuobjdump.path, "-sass", "-res-usage", file.name]
        sass = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    usage = {name: int(value) for name, value in re.findall(r"\b([A-Z]+):(\d+)", sass)}
    return Compiled(
        stack=usage["STACK"],
        local=len(re.findall(r"\b(?:LDL|STL)\b", sass)),
        shared=max(compiled.metadata.shared, usage["SHARED"]),
        sass=sass,
        ptx=compiled.asm["ptx"],
    )


def let_triton_run(patch: pytest.MonkeyPatch) -> None:
    """Have the ops take impl="triton" on any device."""
    for op in ("gated_resnet_op", "logistic_mixture_op"):
        module = import_module(f"dsmooth.functional.{op}")
        patch.setattr(module, "triton_obstacle", lambda *args, **named: None)


@contextmanager
def record_launches(
    module: ModuleType, *kernels: str, play: Callable[[Launch], None] | None = None
) -> Iterator[list[Launch]]:
    """Inside the block, launches of `module`'s kernels of these names are played, if there is who
    plays them, and appended to the list."""
    launches: list[Launch] = []

    def receive(launch: Launch) -> None:
        if play is not None:
            play(launch)
        launches.append(launch)

    with pytest.MonkeyPatch.context() as patch:
        for name in kernels:
            patch.setattr(module, name, _Recorder(getattr(module, name), receive))
        yield launches


class _Recorder:
    def __init__(self, kernel: Any, receive: Callable[[Launch], None]) -> None:
        self.kernel, self.receive = kernel, receive

    def __getitem__(self, grid: tuple[int, ...]) -> Any:
        def launch(*arguments: Any, **named: Any) -> None:
            if not named.pop("enable_fp_fusion", False):
                raise ValueError(f"{self.kernel.__name__}: launch with enable_fp_fusion=True")
            options = {name: named.pop(name, value) for name, value in LAUNCH_OPTIONS.items()}
            values = dict(zip(self.kernel.arg_names, arguments, strict=False)) | named
            self.receive(Launch(self.kernel, grid, values, options))

        return launch
