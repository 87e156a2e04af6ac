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
from collections.abc import Iterator, Mapping
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
Place = str | tuple[Any, ...]  # the name of a parameter; in a tuple, then numbers
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


def compile_kernel(
    fn: Any,
    signature: Mapping[str, Type],
    constexprs: Mapping[Place, Any],
    arch: int,
    num_warps: int,
    num_stages: int,
) -> Any:
    """Compile a @triton.jit function for CUDA compute capability `arch` (80, 90, 100).

    signature: the type of every parameter that is not in `constexprs`, as "*fp32", "i32", "fp32";
    with ":16" where pointer or number is a multiple of 16. A tuple has a tuple of types, with
    "constexpr" for a constant part, whose value is at (name, place). Multiplications and additions
    are fused, as launchers must ask for by name: versions of Triton differ in their default.
    """
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource
    from triton.compiler import compile as compile_source

    names = fn.arg_names
    constants = {key if isinstance(key, tuple) else (key,): v for key, v in constexprs.items()}
    types: dict[str, Type] = {}
    multiples = []
    for i, name in enumerate(names):
        given = signature.get(name, "constexpr")
        types[name] = _bare(given)
        multiples += _multiples_of_16((i,), given)
    source = ASTSource(
        fn=fn,
        signature=types,
        constexprs={(names.index(n), *rest): value for (n, *rest), value in constants.items()},
        attrs={place: [["tt.divisibility", 16]] for place in multiples},
    )
    return compile_source(
        source,
        target=GPUTarget("cuda", arch, WARP_SIZE),
        options={"num_warps": num_warps, "num_stages": num_stages, "enable_fp_fusion": True},
    )


def _bare(type_: Type) -> Type:
    """Without ":16"."""
    return tuple(map(_bare, type_)) if isinstance(type_, tuple) else type_.split(":")[0]


def _multiples_of_16(place: tuple[int, ...], type_: Type) -> list[tuple[int, ...]]:
    """The places of what is marked with ":16"."""
    if not isinstance(type_, tuple):
        return [place] if type_.endswith(":16") else []
    return [found for i, part in enumerate(type_) for found in _multiples_of_16((*place, i), part)]


def compile_launch(launch: Launch, arch: int) -> Compiled:
    """Compile what `launch` would make Triton compile on a GPU of compute capability `arch`."""
    signature, constexprs = specialise(launch.kernel, launch.arguments)
    compiled = compile_kernel(launch.kernel, signature, constexprs, arch, **launch.options)
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


def specialise(fn: Any, arguments: Mapping[str, Any]) -> tuple[dict[str, Type], dict[Place, Any]]:
    """Signature and constants of a call, as Triton derives them from the values.

    A number that is 1 and None become constants; a multiple of 16 is marked as one.
    """
    signature: dict[str, Type] = {}
    constexprs: dict[Place, Any] = {}
    for parameter in fn.params:
        name, value = parameter.name, arguments[parameter.name]
        if not parameter.is_constexpr and isinstance(value, tuple):
            signature[name] = _types_of(name, value)
            constexprs |= _constants_of((name,), value)
        elif parameter.is_constexpr or _type_of(name, value) == "constexpr":
            constexprs[name] = value
        else:
            signature[name] = _type_of(name, value)
    return signature, constexprs


def _types_of(name: str, value: Any) -> Type:
    if isinstance(value, tuple):
        return tuple(_types_of(name, part) for part in value)
    return _type_of(name, value)


def _constants_of(place: tuple[Any, ...], value: Any) -> dict[Place, Any]:
    """The constants in a tuple, by their places: its name, then numbers."""
    if not isinstance(value, tuple):
        return {place: value} if _type_of(str(place), value) == "constexpr" else {}
    found: dict[Place, Any] = {}
    for i, part in enumerate(value):
        found |= _constants_of((*place, i), part)
    return found


def _type_of(name: str, value: Any) -> str:
    if value is None or (type(value) is int and value == 1):
        return "constexpr"
    if isinstance(value, Tensor):
        return f"*{DTYPES[value.dtype]}" + _mark(value.data_ptr())
    if isinstance(value, bool):
        return "u1"
    if isinstance(value, int):
        return ("i32" if -(2**31) <= value < 2**31 else "i64") + _mark(value)
    if isinstance(value, float):
        return "fp32"
    raise TypeError(f"{name} is a {type(value).__name__}, which no kernel here takes")


def _mark(value: int) -> str:
    return ":16" if value % 16 == 0 else ""


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
