"""The memory of the machine, and whether this process keeps what it frees."""

from __future__ import annotations

import ctypes
import os


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
