"""Launching: the arithmetic of float32, the device's capability, and the launch itself."""

from __future__ import annotations

import math
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import tilings

# Whether the kernels run in Triton's interpreter. It reads TRITON_INTERPRET as it decorates a
# function; every file of kernels imports this one first.
INTERPRETED = bool(triton.knobs.runtime.interpret)


def allows_tf32() -> bool:
    """Whether float32 convolutions on CUDA may round their operands to TF32, as torch's own do."""
    precision: Any = torch.backends.cudnn
    return precision.conv.fp32_precision == "tf32"


def accumulator_of(dtype: torch.dtype) -> Any:
    """The dtype in which kernels sum: float64 for float64, else float32."""
    return tl.float64 if dtype == torch.float64 else tl.float32


def uses_tf32(dtype: torch.dtype) -> bool:
    """Whether matmuls of this dtype round to TF32."""
    return dtype == torch.float32 and allows_tf32()


def arithmetic(dtype: torch.dtype, tf32: bool) -> dict[str, Any]:
    """Constexprs: the accumulator's dtype and how float32 operands are multiplied."""
    return {"ACC": accumulator_of(dtype), "PRECISION": "tf32" if tf32 else "ieee"}


def wide_dtype(dtype: torch.dtype) -> torch.dtype:
    """`accumulator_of`, as torch's."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def capability_of(device: torch.device) -> int:
    """Compute capability as one number; interpreted kernels are sized as for 8.0."""
    if device.type != "cuda":
        return 80
    major, minor = torch.cuda.get_device_capability(device)
    return 10 * major + minor


def gradient_plan(rows: int, k: int, columns: int, like: Tensor) -> tilings.GradientPlan:
    """`tilings.gradient_plan` for the dtype and device of `like`."""
    tf32, capability = uses_tf32(like.dtype), capability_of(like.device)
    return tilings.gradient_plan(rows, k, columns, like.dtype, tf32, capability)


def launch(kernel: Any, grid: tuple[int, ...], device: torch.device, **named: Any) -> None:
    """Run a kernel on the current stream of `device`; an empty grid is no launch.

    Multiplications and additions are fused, asked for by name: Triton's default is to change.
    """
    if math.prod(grid) == 0:
        return
    if device.type == "cuda" and device.index != torch.cuda.current_device():
        with torch.cuda.device(device):
            kernel[grid](enable_fp_fusion=True, **named)
    else:
        kernel[grid](enable_fp_fusion=True, **named)
