"""Triton kernels of dsmooth: `@triton.jit` functions and their launchers, nothing else.

The build installs this folder as `dsmooth.kernels`. Under its bare name it would be a second copy
with its own compile caches.
"""

if __name__ != "dsmooth.kernels":
    raise ImportError(
        f"{__name__!r} is not a package of its own: import dsmooth.kernels, the same files"
    )
