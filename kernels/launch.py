"""Kernel launches, the arithmetic of float32, and the compute capability of a device."""

from __future__ import annotations

import functools
import math
from contextlib import nullcontext
from typing import Any

import torch
import triton
from torch import Tensor

from .tilings import Format

Argument = Tensor | tuple[Tensor, ...] | None  # a kernel's pointer arguments

# Whether Triton's interpreter runs the kernels: Triton reads TRITON_INTERPRET at decoration.
INTERPRETED = bool(triton.knobs.runtime.interpret)


def allows_tf32() -> bool:
    """Whether torch lets float32 convolutions on CUDA round their operands to TF32."""
    precision: Any = torch.backends.cudnn
    return precision.conv.fp32_precision == "tf32"


def capability_of(device: torch.device) -> int:
    """Compute capability as one number; 80 for interpreted kernels."""
    if device.type != "cuda":
        return 80
    major, minor = torch.cuda.get_device_capability(device)
    return 10 * major + minor


def arithmetic_of(like: Tensor) -> tuple[Format, int]:
    """The multiplication format of the dtype of `like`, and the capability of its device."""
    exact: Format = "tf32" if like.dtype == torch.float32 and allows_tf32() else "ieee"
    return "half" if like.dtype.itemsize == 2 else exact, capability_of(like.device)


class Prepared:
    """A launch without its tensors: the grid and the arguments that follow from the shapes.

    It caches the compiled kernel: Triton's own lookup takes 35 µs, and a pass has 500 launches.
    """

    __slots__ = ("arguments", "compiled", "grid", "programs")

    def __init__(self, grid: tuple[int, ...], **arguments: Any) -> None:
        self.grid = (*grid, 1, 1)[:3]
        self.programs = math.prod(grid)
        self.arguments = arguments
        self.compiled: dict[tuple[Any, ...], Any] = {}


# The prepared launch, cached by grid and arguments.
prepare = functools.lru_cache(maxsize=4096, typed=True)(Prepared)


def launch(kernel: Any, prepared: Prepared, device: torch.device, **tensors: Argument) -> None:
    """Run a kernel on the current stream of `device`; do nothing if the grid is empty."""
    if prepared.programs == 0:
        return
    with torch.cuda.device(device) if device.type == "cuda" else nullcontext():
        interpreted = not isinstance(kernel, triton.JITFunction)  # or recorded by a test
        addresses, kinds = ({}, []) if interpreted else _addresses(tensors)
        key = (id(kernel), device.index, *kinds)
        if interpreted or key not in prepared.compiled:
            arguments = tensors | prepared.arguments
            prepared.compiled[key] = kernel[prepared.grid](enable_fp_fusion=True, **arguments)
            return
        values = prepared.arguments | addresses
        prepared.compiled[key][prepared.grid](*[values[name] for name in kernel.arg_names])


def _addresses(tensors: dict[str, Argument]) -> tuple[dict[str, object], list[object]]:
    """Addresses of tensors by name, and Triton's specialisation: dtypes, 16-byte alignment,
    None."""
    addresses: dict[str, object] = {}
    kinds: list[object] = []
    for name, argument in tensors.items():
        pointers: list[int | None] = []
        for tensor in argument if isinstance(argument, tuple) else (argument,):
            if tensor is None:
                pointers.append(None)
                kinds.append(None)
            else:
                pointers.append(tensor.data_ptr())
                kinds += tensor.dtype, tensor.data_ptr() & 15
        addresses[name] = tuple(pointers) if isinstance(argument, tuple) else pointers[0]
    return addresses, kinds
