"""The CUDA sampler's kernel on a card: found, compiled if need be, loaded and launched.

images.py finds the kernel's machine code (packaged, in the cache, or compiled by NVRTC), and
driver.py loads and launches it. `_C.CudaSampler` makes the argument of a launch.
"""

from __future__ import annotations

from functools import cache

import torch

from .._extension import unavailable_reason
from .driver import Card, CudaError, Kernel
from .images import sources

NO_COMPILER = (
    "torch's NVRTC, which compiles the sampler for this card, is not installed: "
    "`pip install nvidia-cuda-nvrtc` brings it"
)


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
        sampler_kernel(device, operands)
    except CudaError as error:
        return str(error)
    return None


def sampler_kernel(device: torch.device, operands: str) -> Kernel:
    """The kernel, loaded on a CUDA device. Raises CudaError with the obstacle."""
    index = device.index or 0
    if device.index is None and torch.cuda.is_available():
        index = torch.cuda.current_device()
    return _load(index, operands)


def describe_cuda(index: int) -> str:
    """Where the kernel of a CUDA device comes from, or why there is none, without compiling it."""
    try:
        card = Card(index)
        return next((words for words, _ in sources(card.capability, "bfloat16")), NO_COMPILER)
    except CudaError as error:
        return str(error)


@cache  # of kernels: an error is not kept, so a later call tries again
def _load(index: int, operands: str) -> Kernel:
    """The kernel of one type of operands on a card. Raises CudaError if there is none."""
    card, reason = Card(index), NO_COMPILER
    for words, read in sources(card.capability, operands):
        try:
            return Kernel(card, read())
        except CudaError as error:  # such as code too new for the driver
            reason = f"{words}: {error}"
    raise CudaError(reason)
