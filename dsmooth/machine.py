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
from .fields import SettingError, check_number


def choose_device(name: str | torch.device) -> torch.device:
    """The device that "auto", "cpu", "cuda" (LOCAL_RANK's) or "cuda:1" means."""
    name = str(name)
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cpu":
        return torch.device("cpu")
    kind, _, index = name.partition(":")
    if kind != "cuda" or (index and not index.isdigit()):
        raise SettingError("device", f'must be auto, cpu, cuda or cuda:N, got "{name}"')
    count = torch.cuda.device_count()
    number = int(index) if index else int(os.environ.get("LOCAL_RANK", 0)) % max(count, 1)
    if number >= count:
        raise SettingError("device", f"cannot be {name}: PyTorch finds {count} CUDA devices")
    return torch.device("cuda", number)


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """The context in which networks compute in `precision`, bfloat16 or float32."""
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


def use_threads(threads: int | None) -> None:
    """Make torch use `threads` CPU threads; None keeps its setting. ValueError for less than 1."""
    if threads is None:
        return
    check_number("threads", threads)
    torch.set_num_threads(threads)


@contextmanager
def torch_threads(threads: int | None) -> Iterator[None]:
    """Context manager for `use_threads`."""
    before = torch.get_num_threads()
    use_threads(threads)
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

    By default glibc returns large blocks to the system at once. A training step then requests
    up to 17,000 new pages, which the system fills with zeros: measured, nothing for a small noisy
    model and 20 % of the time of its denoiser.
    Environment variables that begin with MALLOC_ take precedence.
    """
    if any(name.startswith("MALLOC_") for name in os.environ):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return
    trim_threshold, mmap_threshold = -1, -3  # constants of malloc.h
    mallopt(trim_threshold, 2**31 - 1)
    # Older versions reject more than 32 MiB.
    _ = mallopt(mmap_threshold, 2**30) or mallopt(mmap_threshold, 2**25)


def memory_bytes() -> int:
    """The memory of this machine."""
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
