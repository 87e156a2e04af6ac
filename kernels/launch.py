"""Launching: the arithmetic of float32, the choice of a tiling, and the launch itself."""

from __future__ import annotations

import math
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from .tilings import MatmulTiling, Work, tiling_for

# Whether the kernels run in Triton's interpreter. It reads TRITON_INTERPRET as it decorates a
# function; every file of kernels imports this one first.
INTERPRETED = bool(triton.knobs.runtime.interpret)


def allows_tf32() -> bool:
    """Whether float32 matmuls on CUDA may round their operands to TF32."""
    return torch.backends.cuda.matmul.fp32_precision == "tf32"


def arithmetic(dtype: torch.dtype) -> dict[str, Any]:
    """Constexprs: the accumulator's dtype and how float32 operands are multiplied."""
    tf32 = dtype == torch.float32 and allows_tf32()
    return {
        "ACC": tl.float64 if dtype == torch.float64 else tl.float32,
        "PRECISION": "tf32" if tf32 else "ieee",
    }


def wide_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype of sums: float64 for float64, else float32."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def capability_of(device: torch.device) -> int:
    """Compute capability as one number; interpreted kernels are sized as for 8.0."""
    if device.type != "cuda":
        return 80
    major, minor = torch.cuda.get_device_capability(device)
    return 10 * major + minor


def choose(work: Work, channels: int, image: Tensor) -> MatmulTiling:
    """The tiling of a convolution of `channels` on its narrower side, for the device of `image`."""
    return tiling_for(work, channels, image.dtype, allows_tf32(), capability_of(image.device))


def launch(kernel: Any, grid: tuple[int, ...], device: torch.device, *args: Any, **kw: Any) -> None:
    """Run a kernel on the current stream of `device`; an empty grid is no launch.

    Multiplications and additions are fused, asked for by name: Triton's default is to change.
    """
    if math.prod(grid) == 0:
        return
    with torch.cuda.device(device if device.type == "cuda" else -1):
        kernel[grid](*args, enable_fp_fusion=True, **kw)
