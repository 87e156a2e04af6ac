"""Machine code of the CUDA sampler's kernel for a card: packaged, in a cache, or compiled now.

setup.py packages some where it finds nvcc. The others are compiled by torch's NVRTC at their first
use, for exactly this card, and kept in ~/.cache/dsmooth.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .._extension import PACKAGE
from ..files import write_atomically
from ..progress import LINE_SECONDS, LOG
from .compiler import Compiled, CompilerError, Nvrtc, nvrtc
from .driver import CudaError, Image

OLDEST = (8, 0)  # compute capability: mma.sync of bfloat16
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


def images_for(capability: tuple[int, int], operands: str, type_name: str) -> Iterator[Image]:
    """Images that a card may load, the best first. Raises CudaError if nothing can make one.

    operands: bfloat16 or float32; type_name: the same in C++.
    """
    if (path := packaged_code(capability, operands)) is not None:
        yield Image(path.read_bytes(), f"packaged {path.name}")
    failure = NO_COMPILER
    if (compiler := nvrtc()) is not None:
        try:
            yield compiled(compiler, compiler.target_for(capability), operands, type_name)
            failure = ""
        except CompilerError as error:
            failure = str(error)
    if (path := packaged_ptx(operands)) is not None:
        LOG.warning("the driver compiles the sampler from packaged PTX; that may take a minute")
        yield Image(path.read_bytes(), f"packaged {path.name}")
    elif failure:
        raise CudaError(failure)


def origin_of(capability: tuple[int, int], operands: str) -> str:
    """In words, where `images_for` takes its first image from. Raises CudaError if from nowhere."""
    if (path := packaged_code(capability, operands)) is not None:
        return f"packaged {path.name}"
    if (compiler := nvrtc()) is not None:
        target = compiler.target_for(capability)
        file = cached_file(compiler, target, operands)
        if read_checked(file) is not None:
            return f"compiled for {target}, in {file}"
        return f"NVRTC {compiler.version} compiles it for {target} at the first use"
    if (path := packaged_ptx(operands)) is not None:
        return f"packaged {path.name}, which the driver compiles"
    raise CudaError(NO_COMPILER)


def packaged_code(capability: tuple[int, int], operands: str) -> Path | None:
    """The packaged machine code that a card runs: of its major version, not newer than the card."""
    major, minor = capability
    names = (f"{operands}.sm_{major}{older}.cubin" for older in range(minor, -1, -1))
    return next((path for name in names if (path := PACKAGED / name).exists()), None)


def packaged_ptx(operands: str) -> Path | None:
    """The packaged PTX; every card that is not too old can have it compiled."""
    return next(PACKAGED.glob(f"{operands}.*.ptx"), None)


def compiled(compiler: Nvrtc, target: str, operands: str, type_name: str) -> Image:
    """The image from the cache, or compiled and kept there.

    Of several processes that need it at the same time one compiles and the others wait.
    """
    path = cached_file(compiler, target, operands)
    if (data := read_checked(path)) is not None:
        return Image(data, f"cached {path.name}")
    with only_process(path.with_suffix(".lock"), target):
        if (data := read_checked(path)) is not None:
            return Image(data, f"cached {path.name}")
        data = compile_aloud(compiler, target, type_name)
        try:
            write_atomically(path, hashlib.sha256(data).digest() + data)
        except OSError as error:
            LOG.warning("%s: the next process compiles the sampler again", error)
    return Image(data, f"compiled for {target} by NVRTC {compiler.version}")


def compile_kernel(compiler: Nvrtc, target: str, type_name: str, *more: str) -> Compiled:
    """Compile the kernel; more: options of the compiler."""
    headers = dict.fromkeys(STANDARD_NAMES, (SOURCES / STANDARD).read_bytes())
    folder = (SOURCES / MAIN).parent
    options = [*OPTIONS, f"-arch={target}", f"-DDSMOOTH_OPERAND={type_name}", f"-I{folder}", *more]
    return compiler.compile(SOURCES / MAIN, headers, options, ptx=target.startswith("compute"))


def compile_aloud(compiler: Nvrtc, target: str, type_name: str) -> bytes:
    """Compile the kernel in a thread, and say so as long as it takes."""
    outcome: list[bytes | Exception] = []

    def run() -> None:
        try:
            outcome.append(compile_kernel(compiler, target, type_name).data)
        except Exception as error:
            outcome.append(error)

    LOG.warning("compiling the sampler for %s, once: it takes some 20 seconds", target)
    started = time.monotonic()
    thread = threading.Thread(target=run, daemon=True)  # Ctrl-C does not wait for it
    thread.start()
    while thread.is_alive():
        thread.join(LINE_SECONDS)
        words = "compiling, %.0f seconds" if thread.is_alive() else "compiled in %.0f seconds"
        LOG.warning(words, time.monotonic() - started)
    (result,) = outcome
    if isinstance(result, Exception):
        raise result
    return result


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


@contextmanager
def only_process(path: Path, target: str) -> Iterator[None]:
    """Inside the block no other process has the lock `path`, where the folder can hold one."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("w")
    except OSError as error:
        LOG.warning("the sampler is not kept: %s", error)
        yield
        return
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            LOG.warning("another process compiles the sampler for %s: waiting for it", target)
            fcntl.flock(file, fcntl.LOCK_EX)
        except OSError:
            pass  # a network file system without locks
        yield
