"""Triton kernels of dsmooth: `@triton.jit` functions and their launchers.

The build installs this folder as `dsmooth.kernels`. Imported as `kernels`, it would be a second
copy with its own compile caches.
"""

if __name__ != "dsmooth.kernels":
    raise ImportError(f"the kernels are part of dsmooth, got {__name__}: import dsmooth.kernels")
