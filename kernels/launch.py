"""Launching: the arithmetic of float32, the device's capability, and the launch itself."""

from __future__ import annotations

import math
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.runtime.jit import JITFunction

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


def block_gradient_plans(
    rows: int, ks: tuple[int, int], filters: int, like: Tensor
) -> tuple[tilings.GradientPlan, tilings.GradientPlan]:
    """`tilings.block_gradient_plans` for the dtype and device of `like`."""
    tf32, capability = uses_tf32(like.dtype), capability_of(like.device)
    return tilings.block_gradient_plans(rows, ks, filters, like.dtype, tf32, capability)


# Triton's launcher works out at every call for what kinds of arguments a kernel was compiled: 20 µs
# of Python each time. What it found is kept for arguments of the same values, dtypes, alignments.
_compiled: dict[tuple[Any, ...], Any] = {}
MOST_COMPILED = 10_000
NUMBERS = frozenset((int, bool, float, str))  # told by their type: isinstance(_, Tensor) is slow


def kind_of(value: Any) -> Any:
    """What of an argument a compiled kernel may depend on."""
    if isinstance(value, Tensor):
        return value.dtype, value.data_ptr() & 15
    return tuple(map(kind_of, value)) if isinstance(value, tuple) else value


def launch(kernel: Any, grid: tuple[int, ...], device: torch.device, **named: Any) -> None:
    """Run a kernel on the current stream of `device`; an empty grid is no launch.

    Multiplications and additions are fused, asked for by name: Triton's default is to change.
    """
    if math.prod(grid) == 0:
        return
    if device.type == "cuda" and device.index != torch.cuda.current_device():
        with torch.cuda.device(device):
            _launch(kernel, grid, device, named)
    else:
        _launch(kernel, grid, device, named)


def _is_watched() -> bool:
    """Whether somebody asked Triton to be called at every launch."""
    return bool(getattr(triton.knobs.runtime.launch_enter_hook, "calls", None))


def _launch(
    kernel: Any, grid: tuple[int, ...], device: torch.device, named: dict[str, Any]
) -> None:
    # Interpreted, recorded by a test, or watched by a profiler.
    if not isinstance(kernel, JITFunction) or _is_watched():
        kernel[grid](enable_fp_fusion=True, **named)
        return
    arguments = [named[name] for name in kernel.arg_names]
    kinds = [a if type(a) in NUMBERS else kind_of(a) for a in arguments]
    options = named.get("num_warps"), named.get("num_stages")
    # Not the kernel itself, whose hash is that of its source.
    key = (id(kernel), device.index, options, *kinds)
    compiled, _ = _compiled.get(key, (None, None))
    if compiled is None:
        if len(_compiled) >= MOST_COMPILED:
            _compiled.clear()
        _compiled[key] = kernel[grid](enable_fp_fusion=True, **named), kernel
        return
    x, y, z = (*grid, 1, 1)[:3]
    active = triton.runtime.driver.active
    stream = active.get_current_stream(active.get_current_device())
    compiled.run(
        x, y, z, stream, compiled.function, compiled.packed_metadata, None, None, None, *arguments
    )
