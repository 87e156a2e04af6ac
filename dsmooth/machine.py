"""The machine: the device for networks, its number formats, threads, memory, and the processor."""

from __future__ import annotations

import ctypes
import os
import platform
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

import torch

from ._extension import instruction_sets
from .fields import check_number, check_one_of


def choose_device(name: str | torch.device) -> torch.device:
    """The device that "auto", "cpu", "cuda" (LOCAL_RANK's) or "cuda:1" means."""
    name = str(name)
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    names = ["cpu", *(f"cuda:{number}" for number in range(torch.cuda.device_count()))]
    if name == "cuda" and len(names) > 1:
        name = names[1 + int(os.environ.get("LOCAL_RANK", 0)) % (len(names) - 1)]
    check_one_of("device", name, names)
    return torch.device(name)


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """The context in which networks compute in `precision`: in float32 unless it is bfloat16."""
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bfloat16")


def has_fast_bfloat16(device: torch.device) -> bool:
    """Whether a device trains and draws faster in bfloat16 than in float32.

    A processor does with AMX, and an AMD processor with AVX512-BF16, which is 1.8 times as fast. On
    an Intel Xeon (Emerald Rapids) AVX512-BF16 is 0.66 times as fast.
    """
    if device.type == "cuda":
        with torch.cuda.device(device):
            return torch.cuda.is_bf16_supported(including_emulation=False)
    has_pairs = torch.cpu.get_capabilities().get("avx512_bf16", False)
    return "amx" in instruction_sets() or (has_pairs and "Intel" not in cpu_name())


@contextmanager
def torch_threads(threads: int | None) -> Iterator[None]:
    """Make torch use `threads` CPU threads inside the block; None keeps its setting."""
    before = torch.get_num_threads()
    if threads is not None:
        check_number("threads", threads)
        torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def torch_seed(seed: int) -> Iterator[None]:
    """Context manager that seeds torch's CPU generator, and restores its state afterwards.

    torch.manual_seed would also seed the generators of all devices.
    """
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        yield


@cache
def cpu_name() -> str:
    """The processor's name on Linux, else its architecture."""
    if sys.platform == "linux":
        with open("/proc/cpuinfo") as file:
            for line in file:
                if line.startswith("model name"):
                    return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def keep_freed_memory() -> None:
    """Make this process keep freed memory for its next tensors, if the C library is glibc.

    By default it returns large blocks at once, and a training step waits for up to 17,000 new pages
    of zeros: 20 % of the time of a small denoiser. Variables that begin with MALLOC_ go first.
    """
    if any(name.startswith("MALLOC_") for name in os.environ):
        return
    if (mallopt := getattr(ctypes.CDLL(None), "mallopt", None)) is not None:
        trim_threshold, mmap_threshold = -1, -3  # constants of malloc.h
        mallopt(trim_threshold, 2**31 - 1)
        # Older versions reject more than 32 MiB.
        _ = mallopt(mmap_threshold, 2**30) or mallopt(mmap_threshold, 2**25)
