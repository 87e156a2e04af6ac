"""The CUDA sampler's kernel on a card: found, compiled if need be, loaded and launched.

    kernel = sampler_kernel(device, "bfloat16")
    kernel.launch(blocks, lanes, shared_bytes, argument, stream)

images.py finds the kernel's machine code (packaged, in the cache, or compiled by NVRTC), and
driver.py loads and launches it. `_C.CudaSampler` makes the argument of a launch.
"""

from __future__ import annotations

from functools import cache

import torch

from .._extension import unavailable_reason
from .compiler import nvrtc
from .driver import Card, CudaError, Kernel
from .images import OLDEST, images_for, origin_of

# Names of the types of operands in Python and in C++.
OPERANDS = {"bfloat16": "Bf16", "float32": "float"}


def cuda_obstacle(device: torch.device, operands: str = "bfloat16") -> str | None:
    """Why the sampler cannot run on a CUDA device; None if it can.

    The first call for a device and type of operands loads the kernel, and may compile it.
    """
    if (reason := unavailable_reason()) is not None:
        return reason
    found = _load(device.index or 0, operands)
    return found if isinstance(found, str) else None


def sampler_kernel(device: torch.device, operands: str) -> Kernel:
    """The kernel, loaded on a CUDA device. Raises RuntimeError with the obstacle."""
    found = _load(device.index or 0, operands)
    if isinstance(found, str):
        raise RuntimeError(f"the cached sampler cannot run on {device}: {found}")
    return found


def describe_cuda(index: int) -> str:
    """Where the kernel of a CUDA device comes from, or why there is none, without compiling it."""
    try:
        card = Card(index)
        return too_old(card) or origin_of(card.capability, "bfloat16")
    except CudaError as error:
        return str(error)


def describe_compiler() -> str:
    """torch's NVRTC in words."""
    found = nvrtc()
    return "none (torch brings none)" if found is None else f"NVRTC {found.version} ({found.path})"


@cache
def _load(index: int, operands: str) -> Kernel | str:
    """The kernel of one type of operands on a card, or the reason why there is none."""
    reason = ""
    try:
        card = Card(index)
        if reason := too_old(card):
            return reason
        for image in images_for(card.capability, operands, OPERANDS[operands]):
            try:
                return Kernel(card, image)
            except CudaError as error:  # such as code of a toolkit that is newer than the driver
                reason = f"{image.origin}: {error}"
    except CudaError as error:
        return str(error)
    return reason


def too_old(card: Card) -> str:
    """Why a card is too old for the kernel, or ""."""
    if card.capability >= OLDEST:
        return ""
    return (
        f"cuda:{card.index} has compute capability {card.capability[0]}.{card.capability[1]}, "
        f"and the sampler needs {OLDEST[0]}.{OLDEST[1]}"
    )
