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

from tests.helpers.sass import Instruction, disassemble, parse

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
    """`compile_kernel`, and what is to be read in its machine code."""
    compiled = compile_kernel(launch, arch)
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        Path(file.name).write_bytes(compiled.asm["cubin"])
        sass = disassemble(Path(file.name))
    usage = {name: int(value) for name, value in re.findall(r"\b([A-Z]+):(\d+)", sass)}
    return Compiled(
        registers=usage["REG"],
        stack=usage["STACK"],
        local=len(re.findall(r"\b(?:LDL|STL)\b", sass)),
        shared=max(compiled.metadata.shared, usage["SHARED"]),
        sass=sass,
        ptx=compiled.asm["ptx"],
    )


def let_triton_run(patch: pytest.MonkeyPatch) -> None:
    """Have the ops take impl="triton" on any device."""
    for op in ("gated_resnet", "logistic_mixture"):
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
