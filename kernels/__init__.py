"""Triton kernels of dsmooth: `@triton.jit` functions and their launchers, nothing else.

The folder lies at the top of the source tree and is packaged as `dsmooth.kernels` (a symlink).
Imported under its bare name it would be a second copy with its own compile caches, so that import
is refused.
"""

if __name__ != "dsmooth.kernels":
    raise ImportError(
        f"{__name__!r} is not a package of its own: import dsmooth.kernels, the same files"
    )
