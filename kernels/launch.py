"""Launching: the arithmetic of float32, the device's capability, and the launch itself."""

from __future__ import annotations

import functools
import math
import operator
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.runtime.jit import JITFunction

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


def arithmetic_of(like: Tensor) -> tuple[bool, int]:
    """Whether matmuls of the dtype of `like` round to TF32, and the capability of its device."""
    return uses_tf32(like.dtype), capability_of(like.device)


class Plan:
    """What of a launch follows from shapes and dtypes: its grid, and all arguments but tensors.

    Make it once for each shape and keep it: a step has hundreds of launches, and Triton's own
    launcher takes 20 µs of Python to find what was compiled for such arguments. A plan remembers.

    starts: the numbers of contiguous tensors, by name, from which on a kernel gets them, which
    spares a view.
    """

    __slots__ = ("arguments", "compiled", "grid", "programs", "starts")

    def __init__(
        self, grid: tuple[int, ...], *, starts: dict[str, int] | None = None, **arguments: Any
    ) -> None:
        self.grid = grid
        self.programs = math.prod(grid)
        self.starts = starts or {}
        self.arguments = arguments
        # Compiled kernels by what of the tensors they depend on.
        self.compiled: dict[tuple[Any, ...], Compiled] = {}


class Compiled(NamedTuple):
    """A compiled kernel, and its arguments in order, of which the addresses are to be filled in.

    places: where, and which of the addresses; three for a tuple of several. starts: which ones to
    move, and how far. source: what it was compiled from, whose `id` must stay its own.
    """

    source: Any
    kernel: Any
    arguments: list[Any]
    places: list[tuple[int, int, int]]
    starts: list[tuple[int, int]]
    grid: tuple[int, int, int]


@functools.lru_cache(maxsize=4096, typed=True)
def plan(grid: tuple[int, ...], **arguments: Any) -> Plan:
    """The plan of these, the same for the same ones."""
    return Plan(grid, **arguments)


def launch(
    kernel: Any, plan: Plan, device: torch.device, **tensors: Tensor | tuple[Tensor, ...] | None
) -> None:
    """Run a kernel on the current stream of `device`; an empty grid is no launch.

    Multiplications and additions are fused, asked for by name: Triton's default is to change.
    """
    if plan.programs == 0:
        return
    if device.type == "cuda" and device.index != torch.cuda.current_device():
        with torch.cuda.device(device):
            _launch(kernel, plan, device, tensors)
    else:
        _launch(kernel, plan, device, tensors)


def _is_watched() -> bool:
    """Whether somebody asked Triton to be called at every launch."""
    return bool(getattr(triton.knobs.runtime.launch_enter_hook, "calls", None))


def _launch(kernel: Any, plan: Plan, device: torch.device, tensors: dict[str, Any]) -> None:
    # Interpreted, recorded by a test, or watched by a profiler.
    if not isinstance(kernel, JITFunction) or _is_watched():
        kernel[plan.grid](enable_fp_fusion=True, **_started(plan, tensors), **plan.arguments)
        return
    flat: list[Tensor] = []
    absent: list[str] = []
    for name, tensor in tensors.items():
        if tensor is None:
            absent.append(name)
        elif type(tensor) is tuple:
            flat += tensor
        else:
            flat.append(tensor)
    addresses = list(map(_address_of, flat))
    # Triton compiles for dtypes, and for addresses that are multiples of 16.
    kinds = [address & 15 for address in addresses]
    key = (id(kernel), device.index, *tensors, *absent, *map(_dtype_of, flat), *kinds)
    found = plan.compiled.get(key)
    if found is None:
        started = _started(plan, tensors)
        compiled = kernel[plan.grid](enable_fp_fusion=True, **started, **plan.arguments)
        plan.compiled[key] = _remember(kernel, compiled, plan, tensors)
        return
    arguments = found.arguments.copy()
    for i, distance in found.starts:
        addresses[i] += distance
    for place, i, count in found.places:
        arguments[place] = tuple(addresses[i : i + count]) if count else addresses[i]
    active = triton.runtime.driver.active
    stream = active.get_current_stream(active.get_current_device())
    compiled = found.kernel
    compiled.run(
        *found.grid, stream, compiled.function, compiled.packed_metadata, None, None, None,
        *arguments,
    )  # fmt: skip


_address_of = Tensor.data_ptr
_dtype_of = operator.attrgetter("dtype")


def _started(plan: Plan, tensors: dict[str, Any]) -> dict[str, Any]:
    """The tensors as a kernel is to get them."""
    views = {name: tensors[name].view(-1)[start:] for name, start in plan.starts.items()}
    return {**tensors, **views}


def _remember(kernel: Any, compiled: Any, plan: Plan, tensors: dict[str, Any]) -> Compiled:
    names = kernel.arg_names
    arguments = [None if name in tensors else plan.arguments[name] for name in names]
    places, starts, i = [], [], 0
    for name, tensor in tensors.items():
        if tensor is None:
            continue
        count = len(tensor) if type(tensor) is tuple else 0
        places.append((names.index(name), i, count))
        if name in plan.starts:
            starts.append((i, plan.starts[name] * tensor.element_size()))
        i += count or 1
    x, y, z = (*plan.grid, 1, 1)[:3]
    return Compiled(kernel, compiled, arguments, places, starts, (x, y, z))
