"""How Triton kernels are proven without a GPU: compiled ahead of time, and their launches recorded.

A launcher calls `kernel[grid](*arguments, **options)`. `record_launches` replaces the kernel for a
while and keeps those calls; `compile_launch` compiles one for an architecture as Triton would on
that GPU, with the same specialisations, and reads the result. What a kernel computes is judged in
the files of tests/interpreted, in a process of their own (see test_interpreter.py): Triton reads
TRITON_INTERPRET when a function is decorated.

Triton itself is imported by the functions, so that a test module can skip where there is none.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from tests.helpers.sass import Instruction, parse

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


@dataclass(frozen=True)
class Compiled:
    """A compiled kernel.

    registers: of a thread. stack, in bytes of a thread: what did not fit the registers. local: how
    many instructions load or store such memory (LDL, STL). shared: bytes of a block, static and
    dynamic. sass is the machine's code as cuobjdump prints it; ptx the virtual machine's.
    """

    registers: int
    stack: int
    local: int
    shared: int
    sass: str
    ptx: str

    @cached_property
    def code(self) -> list[Instruction]:
        """The machine code, line by line."""
        return parse(self.sass)

    def count(self, instruction: str) -> int:
        """How many instructions of the machine code begin with this name, such as "HMMA"."""
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
    """`compile_kernel`, and what is to be read in its machine code."""
    compiled = compile_kernel(launch, arch)
    sass = _disassembled(compiled.asm["cubin"])
    usage = {name: int(value) for name, value in re.findall(r"\b([A-Z]+):(\d+)", sass)}
    return Compiled(
        registers=usage["REG"],
        stack=usage["STACK"],
        local=len(re.findall(r"\b(?:LDL|STL)\b", sass)),
        shared=max(compiled.metadata.shared, usage["SHARED"]),
        sass=sass,
        ptx=compiled.asm["ptx"],
    )


@contextmanager
def record_launches(module: ModuleType, *kernels: str) -> Iterator[list[Launch]]:
    """Inside the block, `module`'s kernels of these names do nothing but append to the list."""
    launches: list[Launch] = []
    originals = {name: getattr(module, name) for name in kernels}
    try:
        for name, kernel in originals.items():
            setattr(module, name, _Recorder(kernel, launches))
        yield launches
    finally:
        for name, kernel in originals.items():
            setattr(module, name, kernel)


class _Recorder:
    def __init__(self, kernel: Any, launches: list[Launch]) -> None:
        self.kernel, self.launches = kernel, launches

    def __getitem__(self, grid: tuple[int, ...]) -> Any:
        def launch(*arguments: Any, **named: Any) -> None:
            if not named.pop("enable_fp_fusion", False):
                raise ValueError(f"{self.kernel.__name__}: launch with enable_fp_fusion=True")
            options = {name: named.pop(name, value) for name, value in LAUNCH_OPTIONS.items()}
            values = dict(zip(self.kernel.arg_names, arguments, strict=False)) | named
            self.launches.append(Launch(self.kernel, grid, values, options))

        return launch


def _disassembled(cubin: bytes) -> str:
    """The code of the only kernel in a cubin and its resources (REG, STACK), by cuobjdump."""
    from triton import knobs

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.cubin"
        path.write_bytes(cubin)
        command = [knobs.nvidia.cuobjdump.path, "-sass", "-res-usage", str(path)]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout
