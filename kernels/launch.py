"""Kernel launches, the arithmetic of float32, and the compute capability of a device."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import torch
import triton
from torch import Tensor

from .tilings import Format

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


def launch(
    kernel: Any, grid: tuple[int, int] | tuple[int], device: torch.device, **arguments: Any
) -> None:
    """Run a kernel on the current stream of `device`; do nothing if the grid is empty.

    Triton's choice of a compiled kernel takes 35 µs; a CUDA graph replays launches without it.
    """
    if 0 not in grid:
        with torch.cuda.device(device) if device.type == "cuda" else nullcontext():
            kernel[grid](enable_fp_fusion=True, **arguments)
