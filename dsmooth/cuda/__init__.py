"""The CUDA sampler's kernel on a card: found, compiled if need be, loaded and launched.

    kernel = sampler_kernel(device, "bfloat16")
    kernel.launch(blocks, lanes, shared_bytes, argument, stream)

images.py finds the kernel's machine code (packaged, in the cache, or compiled by NVRTC), and
driver.py loads and launches it. `_C.CudaSampler` makes the argument of a launch.
"""

from __future__ import annotations

from contextlib import suppress
from functools import cache

import torch

from .._extension import unavailable_reason
from .compiler import CompilerError, nvrtc
from .driver import Card, CudaError, Kernel
from .images import NO_COMPILER, OLDEST, sources


def sampler_obstacle(device: torch.device, operands: str = "bfloat16") -> str | None:
    """Why the cached sampler cannot run on a device; None if it can. operands: or float32.

    The first call for a CUDA device and type of operands loads the kernel, and may compile it.
    """
    reason = unavailable_reason()
    if reason is not None or device.type == "cpu":
        return reason
    if device.type != "cuda":
        return f"the cached sampler does not run on {device.type}"
    try:
        _load(_index_of(device), operands)
    except CudaError as error:
        return str(error)
    return None


def sampler_kernel(device: torch.device, operands: str) -> Kernel:
    """The kernel, loaded on a CUDA device. Raises CudaError with the obstacle."""
    return _load(_index_of(device), operands)


def describe_cuda(index: int) -> str:
    """Where the kernel of a CUDA device comes from, or why there is none, without compiling it."""
    try:
        first = next(sources(checked_card(index).capability, "bfloat16"), None)
        return NO_COMPILER if first is None else first.words
    except CudaError as error:
        return str(error)


def describe_compiler() -> str:
    """torch's NVRTC in words."""
    found = nvrtc()
    return "none (torch brings none)" if found is None else f"NVRTC {found.version} ({found.path})"


def _index_of(device: torch.device) -> int:
    if device.index is None:
        with suppress(RuntimeError, AssertionError):  # without a card or a CUDA build of torch
            return torch.cuda.current_device()
    return device.index or 0


@cache  # of kernels: an error is not kept, so a later call tries again
def _load(index: int, operands: str) -> Kernel:
    """The kernel of one type of operands on a card. Raises CudaError if there is none."""
    card, reason = checked_card(index), NO_COMPILER
    for source in sources(card.capability, operands):
        try:
            image = source.get()
            reason = image.origin
            return Kernel(card, image)
        except CudaError as error:  # such as code of a toolkit that is newer than the driver
            reason = f"{reason}: {error}"
        except CompilerError as error:
            reason = str(error)
    raise CudaError(reason)


def checked_card(index: int) -> Card:
    """A card that is not too old for the kernel; otherwise raises CudaError."""
    card = Card(index)
    if card.capability < OLDEST:
        major, minor = card.capability
        raise CudaError(
            f"cuda:{index} has compute capability {major}.{minor}, and the sampler needs "
            f"{OLDEST[0]}.{OLDEST[1]}"
        )
    return card
