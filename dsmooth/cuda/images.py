"""Machine code of the CUDA sampler's kernel for a card: packaged, in a cache, or compiled now.

setup.py packages some where it finds nvcc. The others are compiled by torch's NVRTC at their first
use, for exactly this card, and kept in ~/.cache/dsmooth.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path

from .._extension import PACKAGE
from ..files import write_atomically
from ..progress import LOG
from .compiler import Nvrtc, nvrtc

# Names of the types of operands in Python and in C++.
OPERANDS = {"bfloat16": "Bf16", "float32": "float"}
PACKAGED = PACKAGE / "cuda" / "images"
# The sources of the kernel, in the package or, in a source tree, next to it.
SOURCES = next((f for f in (PACKAGE / "csrc", PACKAGE.parent / "csrc") if f.is_dir()), PACKAGE)
MAIN, STANDARD = Path("sampler/cuda/sample.cu"), Path("sampler/cuda/standard.h")
PATTERNS = (
    *(f"common/{name}.h" for name in ("bfloat16", "host_device", "likelihood", "philox")),
    *("sampler/*.h", "sampler/program/views.h", "sampler/cuda/*.cu*", str(STANDARD)),
)
# Headers of the C++ library, which NVRTC does not have; standard.h serves for each.
STANDARD_NAMES = ("cassert", "cmath", "cstddef", "cstdint", "cstring")
OPTIONS = ("-std=c++20", "-default-device")
KEPT_SECONDS = 30 * 24 * 3600.0  # how long images of other sources stay in the cache


def sources(
    capability: tuple[int, int], operands: str
) -> Iterator[tuple[str, Callable[[], bytes]]]:
    """Where a card may have its image from, the best first: in words, and the function that gets it
    from there. operands: bfloat16 or float32."""
    major, newest = capability
    # Machine code runs on the cards of its major version that are not older.
    for minor in range(newest, -1, -1):
        path = PACKAGED / f"{operands}.sm_{major}{minor}.cubin"
        if path.exists():
            yield f"packaged {path.name}", path.read_bytes
    if (compiler := nvrtc()) is not None:
        target = compiler.target_for(capability)
        words = f"compiled for {target} by NVRTC {compiler.version} at the first use"
        yield words, partial(compiled, compiler, target, operands)
    for path in PACKAGED.glob(f"{operands}.*.ptx"):
        yield f"packaged {path.name}, which the driver compiles", path.read_bytes


def compiled(compiler: Nvrtc, target: str, operands: str) -> bytes:
    """The image from the cache, or compiled and kept there. Raises CudaError."""
    path = cached_file(compiler, target, operands)
    with suppress(OSError):
        content = path.read_bytes()
        digest, data = content[:32], content[32:]
        if hashlib.sha256(data).digest() == digest:
            return data
        LOG.warning("%s is damaged and is made again", path)
    LOG.warning("compiling the sampler for %s, once: it takes some 20 seconds", target)
    data = compile_kernel(compiler, target, operands)[0]
    try:
        # Another process may do the same; each replaces the file by a whole one.
        write_atomically(path, hashlib.sha256(data).digest() + data)
        for other in path.parent.glob(f"sampler-{operands}-{target}-*"):
            if other != path and time.time() - other.stat().st_mtime > KEPT_SECONDS:
                other.unlink(missing_ok=True)
    except OSError as error:
        LOG.warning("the sampler is not kept, so the next process compiles it again: %s", error)
    return data


def compile_kernel(compiler: Nvrtc, target: str, operands: str, *more: str) -> tuple[bytes, str]:
    """The kernel, and what the compiler said. more: options of the compiler."""
    headers = dict.fromkeys(STANDARD_NAMES, (SOURCES / STANDARD).read_bytes())
    folder = (SOURCES / MAIN).parent
    operand = f"-DDSMOOTH_OPERAND={OPERANDS[operands]}"
    options = [*OPTIONS, f"-arch={target}", operand, f"-I{folder}", *more]
    return compiler.compile(SOURCES / MAIN, headers, options, ptx=target.startswith("compute"))


def cached_file(compiler: Nvrtc, target: str, operands: str) -> Path:
    """The file of an image, by all that decides it: sources, options, target and compiler."""
    digest = hashlib.sha256(repr((OPTIONS, STANDARD_NAMES, compiler.version)).encode())
    for path in sorted({path for pattern in PATTERNS for path in SOURCES.glob(pattern)}):
        digest.update(path.read_bytes())
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return cache / "dsmooth" / f"sampler-{operands}-{target}-{digest.hexdigest()[:16]}"
