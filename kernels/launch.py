"""What every launcher needs: geometry, strides, the arithmetic of float32, and the config."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
import triton.language as tl
from torch import Tensor

from .configs import Config, Work, config_for

MAX_PIXELS = 2**31 - 2**10  # positions are 32-bit; the last block may be partly beyond the end


class Taps(NamedTuple):
    """Where tap (i, j) of a (kh, kw) kernel reads: stride * (row, col) + (i - top, j - left)."""

    kh: int
    kw: int
    top: int
    left: int
    stride: int = 1

    def constants(self) -> dict[str, int]:
        """The kernel and its padding as constexprs."""
        return {"KH": self.kh, "KW": self.kw, "TOP": self.top, "LEFT": self.left}


def strides_of(image: Tensor) -> tuple[int, int, int, int]:
    """Strides (image, row, column, channel) of a (B, C, H, W) tensor in any memory order."""
    batch, channel, row, col = image.stride()
    return batch, row, col, channel


def n_pixels(image: Tensor) -> int:
    """B H W. Raises ValueError where 32 bits cannot number the pixels."""
    count = image.shape[0] * image.shape[2] * image.shape[3]
    if count > MAX_PIXELS:
        raise ValueError(f"an image tensor must have at most {MAX_PIXELS} pixels, got {count}")
    return count


def empty_channels_last(like: Tensor, channels: int, rows: int, cols: int) -> Tensor:
    return torch.empty(
        (like.shape[0], channels, rows, cols),
        dtype=like.dtype,
        device=like.device,
        memory_format=torch.channels_last,
    )


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
    """What sums are kept in: float64 for float64, else float32."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def capability_of(device: torch.device) -> int:
    """Compute capability as one number; interpreted kernels are sized as for 8.0."""
    if device.type != "cuda":
        return 80
    major, minor = torch.cuda.get_device_capability(device)
    return 10 * major + minor


def choose(work: Work, channels: int, image: Tensor) -> Config:
    return config_for(work, channels, image.dtype, allows_tf32(), capability_of(image.device))


def launch(kernel: Any, grid: tuple[int, ...], device: torch.device, *args: Any, **kw: Any) -> None:
    """Run a kernel on the current stream of `device`; an empty grid is no launch.

    Multiplications and additions are fused, asked for by name: Triton's default is to change.
    """
    if math.prod(grid) == 0:
        return
    with torch.cuda.device(device if device.type == "cuda" else -1):
        kernel[grid](*args, enable_fp_fusion=True, **kw)
