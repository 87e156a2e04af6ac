"""Reading files in a child process with bounded memory and time; writers of hostile files.

As a program: reads a JSON list of [reader, folder] from standard input, and answers each with one
line of JSON, [outcome, detail, bytes]: ["images", shape], or [class of the error, message]; and how
far the process's memory has ever grown since it began.
"""

from __future__ import annotations

import gzip
import io
import json
import os
import resource
import signal
import struct
import subprocess
import sys
import tarfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

_ADDRESS_SPACE = 6 << 30  # beyond what the modules take; keeps a failing test from the machine
_SECONDS = 10  # of processor time for one file
_WAIT = 60  # seconds, on a machine however busy


class Outcome(NamedTuple):
    """kind: "images", "refused", the class of another error, or "killed"; grown: bytes."""

    kind: str
    detail: str
    grown: int


def read_in_child(jobs: Sequence[tuple[str, Path]], path: Path | None = None) -> list[Outcome]:
    """Read every (reader, folder); a child that dies is replaced, and the file that killed it told.

    path: a folder of programs to find before the others.
    """
    root = str(Path(__file__).resolve().parents[2])
    env = {**os.environ, "PYTHONPATH": os.environ.get("PYTHONPATH", root), "OMP_NUM_THREADS": "1"}
    if path is not None:
        env["PATH"] = f"{path}{os.pathsep}{env['PATH']}"
    outcomes: list[Outcome] = []
    while len(outcomes) < len(jobs):
        rest = [(reader, str(folder)) for reader, folder in jobs[len(outcomes) :]]
        done = subprocess.run(
            [sys.executable, "-W", "error", __file__],
            input=json.dumps(rest),
            env=env,
            capture_output=True,
            text=True,
        )
        lines = [Outcome(*json.loads(line)) for line in done.stdout.splitlines()]
        outcomes += lines
        if len(lines) < len(rest):
            assert done.returncode < 0, done.stderr
            outcomes.append(Outcome("killed", signal.Signals(-done.returncode).name, 0))
    return outcomes


def _memory() -> int:
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def main() -> None:
    import torch

    from dsmooth.data import load_dataset, mnist

    def read(reader: str, folder: Path) -> torch.Tensor:
        if reader == "npz":
            mnist.SUBSET_PATH = folder / "subset.npz"
            return mnist.load_embedded_mnist("test").images
        options = {"image_size": 8} if reader == "folder" else {}
        return load_dataset(reader, "train", folder, **options).images

    torch.set_num_threads(1)
    if sys.platform == "linux":
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        limit = pages * resource.getpagesize() + _ADDRESS_SPACE
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    start = _memory()
    for reader, folder in json.load(sys.stdin):
        signal.setitimer(signal.ITIMER_PROF, _SECONDS)
        signal.alarm(_WAIT)
        try:
            images = read(reader, Path(folder))
            kind, detail = "images", f"{images.dtype} {tuple(images.shape)}"
        except (ValueError, OSError) as error:
            own = type(error) is not UnicodeDecodeError
            kind, detail = "refused" if own else type(error).__name__, str(error)
        except BaseException as error:
            kind, detail = type(error).__name__, str(error)
        signal.alarm(0)
        signal.setitimer(signal.ITIMER_PROF, 0)
        print(json.dumps([kind, detail, _memory() - start]), flush=True)


# --- writers -----------------------------------------------------------------------------------


def gzip_zeros(n: int, step: int = 1 << 24) -> bytes:
    """A gzip file of n zero bytes, in members of `step`: 1,000 times smaller, and fast to make."""
    return gzip.compress(bytes(step)) * (n // step) + gzip.compress(bytes(n % step))


def png_chunk(kind: bytes, content: bytes) -> bytes:
    return (
        struct.pack(">I", len(content))
        + kind
        + content
        + struct.pack(">I", zlib.crc32(kind + content))
    )


def black_png(width: int, height: int, depth: int = 1, colour: int = 0) -> bytes:
    """A black PNG, grey or RGB (colour 2); its rows compress 1,000 times."""
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    row = 1 + (width * depth * (colour + 1) + 7) // 8
    rows = zlib.compress(bytes(row * height))
    parts = (png_chunk(b"IHDR", header), png_chunk(b"IDAT", rows), png_chunk(b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def webp_bomb(side: int) -> bytes:
    """A WebP file that promises a canvas of side x side and holds nothing."""
    size = (side - 1).to_bytes(3, "little")
    body = b"WEBPVP8X" + struct.pack("<I", 10) + bytes(4) + size + size
    return b"RIFF" + struct.pack("<I", len(body)) + body


def tiff(tags: dict[int, int | tuple[int, ...]]) -> bytes:
    """A little-endian TIFF file of these tags, one or several numbers each, and 384 zeros."""
    start = 8 + 2 + 12 * len(tags) + 4
    entries, tail = b"", b""
    for tag, value in sorted(tags.items()):
        if isinstance(value, tuple):
            entries += struct.pack("<HHLL", tag, 4, len(value), start + len(tail))
            tail += struct.pack(f"<{len(value)}L", *value)
        else:
            entries += struct.pack("<HHLL", tag, 4, 1, value)
    return b"II*\0" + struct.pack("<LH", 8, len(tags)) + entries + bytes(4) + tail + bytes(384)


def jpeg_of_scans(count: int) -> bytes:
    """A JPEG file that goes over its pixels `count` times more than it needs."""
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(np.full((64, 64), 7, np.uint8)).save(buffer, "JPEG", progressive=True)
    content = buffer.getvalue()
    scan = content[content.rindex(b"\xff\xda") : -2]
    return content[:-2] + scan * count + content[-2:]


def tar_member(name: str, kind: bytes, size: int, **fields: str) -> bytes:
    """One tar header that promises `size` bytes."""
    member = tarfile.TarInfo(name)
    member.type, member.size = kind, size
    for field, value in fields.items():
        setattr(member, field, value)
    return member.tobuf(tarfile.GNU_FORMAT)


EPS = b"""%!PS-Adobe-3.0 EPSF-3.0
%%BoundingBox: 0 0 8 8
%%EndComments
(ran) (w) file closefile
showpage
"""


if __name__ == "__main__":
    main()
