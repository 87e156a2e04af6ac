"""Machine code of the CUDA sampler's kernel for a card: packaged, in a cache, or compiled now.

setup.py packages some where it finds nvcc. The others are compiled by torch's NVRTC at their first
use, for exactly this card, and kept in ~/.cache/dsmooth.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple

from .._extension import PACKAGE
from ..files import write_atomically
from ..progress import LOG
from .compiler import Compiled, Nvrtc, nvrtc
from .driver import Image

OLDEST = (8, 0)  # compute capability: mma.sync of bfloat16
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
NO_COMPILER = (
    "torch's NVRTC, which compiles the sampler for this card, is not installed: "
    "`pip install nvidia-cuda-nvrtc` brings it"
)
KEPT_SECONDS = 30 * 24 * 3600.0  # how long images of other sources stay in the cache


class Source(NamedTuple):
    """A place that an image may come from, in words, and the function that gets it from there."""

    words: str
    get: Callable[[], Image]


def sources(capability: tuple[int, int], operands: str) -> Iterator[Source]:
    """Where a card may have its image from, the best first. operands: bfloat16 or float32."""
    if (path := packaged_code(capability, operands)) is not None:
        yield Source(f"packaged {path.name}", partial(packaged, path))
    if (compiler := nvrtc()) is not None:
        target = compiler.target_for(capability)
        file = cached_file(compiler, target, operands)
        words = f"NVRTC {compiler.version} compiles it for {target} at the first use"
        if read_checked(file) is not None:
            words = f"compiled for {target}, in {file}"
        yield Source(words, partial(compiled, compiler, target, operands))
    # Every card that is not too old can have PTX compiled.
    if (path := next(PACKAGED.glob(f"{operands}.*.ptx"), None)) is not None:
        yield Source(f"packaged {path.name}, which the driver compiles", partial(packaged, path))


def packaged_code(capability: tuple[int, int], operands: str) -> Path | None:
    """The packaged machine code that a card runs: of its major version, not newer than the card."""
    major, minor = capability
    names = (f"{operands}.sm_{major}{older}.cubin" for older in range(minor, -1, -1))
    return next((path for name in names if (path := PACKAGED / name).exists()), None)


def packaged(path: Path) -> Image:
    """A packaged image."""
    if path.suffix == ".ptx":
        LOG.warning("the driver compiles the sampler from packaged PTX; that may take a minute")
    return Image(path.read_bytes(), f"packaged {path.name}")


def compiled(compiler: Nvrtc, target: str, operands: str) -> Image:
    """The image from the cache, or compiled and kept there. Raises CompilerError."""
    path = cached_file(compiler, target, operands)
    if (data := read_checked(path)) is not None:
        return Image(data, f"cached {path.name}")
    LOG.warning("compiling the sampler for %s, once: it takes some 20 seconds", target)
    started = time.monotonic()
    data = compile_kernel(compiler, target, OPERANDS[operands]).data
    LOG.warning("compiled in %.0f seconds", time.monotonic() - started)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # Another process may do the same; each replaces the file by a whole one.
        write_atomically(path, hashlib.sha256(data).digest() + data)
        for other in path.parent.glob(f"sampler-{operands}-{target}-*"):
            if other != path and time.time() - other.stat().st_mtime > KEPT_SECONDS:
                other.unlink(missing_ok=True)
    except OSError as error:
        LOG.warning("the sampler is not kept, so the next process compiles it again: %s", error)
    return Image(data, f"compiled for {target} by NVRTC {compiler.version}")


def compile_kernel(compiler: Nvrtc, target: str, type_name: str, *more: str) -> Compiled:
    """Compile the kernel; more: options of the compiler."""
    headers = dict.fromkeys(STANDARD_NAMES, (SOURCES / STANDARD).read_bytes())
    folder = (SOURCES / MAIN).parent
    options = [*OPTIONS, f"-arch={target}", f"-DDSMOOTH_OPERAND={type_name}", f"-I{folder}", *more]
    return compiler.compile(SOURCES / MAIN, headers, options, ptx=target.startswith("compute"))


def cached_file(compiler: Nvrtc, target: str, operands: str) -> Path:
    """The file of an image, by all that decides it: sources, options, target and compiler."""
    digest = hashlib.sha256(repr((OPTIONS, STANDARD_NAMES, compiler.version)).encode())
    for path in sorted({path for pattern in PATTERNS for path in SOURCES.glob(pattern)}):
        digest.update(path.read_bytes())
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return cache / "dsmooth" / f"sampler-{operands}-{target}-{digest.hexdigest()[:16]}"


def read_checked(path: Path) -> bytes | None:
    """What was written after its digest; None, which has it made again, for anything else."""
    try:
        content = path.read_bytes()
    except OSError:
        return None
    digest, data = content[:32], content[32:]
    if hashlib.sha256(data).digest() == digest:
        return data
    LOG.warning("%s is damaged and is made again", path)
    return None
