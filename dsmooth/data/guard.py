"""Careful reading: regular files only, bounded reads, one kind of error."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import md5
from pathlib import Path
from typing import BinaryIO, Protocol

import numpy as np
from numpy.typing import NDArray

_CHUNK = 1 << 20
_KINDS = (
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISFIFO, "a named pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)


class Refused(ValueError):
    """A file that a reader does not take. The message names it and says what is wrong."""


class Readable(Protocol):
    """Anything that gives its next bytes."""

    def read(self, size: int, /) -> bytes: ...


def shown(path: Path | str) -> str:
    r"""Return `path` as text that can be printed: bytes that are not UTF-8 become \xNN."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


@contextmanager
def guarded(place: Path | str, what: str) -> Iterator[None]:
    """Raise any error inside as one ValueError, "<place> cannot be read as <what> (<reason>)".

    Decoders of damaged data raise almost anything: EOFError, struct.error, KeyError, MemoryError.
    """
    try:
        yield
    except Refused:
        raise
    except Exception as error:
        reason = " ".join(ascii(str(error))[1:-1].split())[:200] or type(error).__name__
        raise Refused(f"{shown(place)} cannot be read as {what} ({reason})") from error


@contextmanager
def open_regular(path: Path) -> Iterator[BinaryIO]:
    """Open `path`, or what it links to, if that is a regular file.

    To open a named pipe would wait for a writer; to open a device may act on it.
    Raises FileNotFoundError for a link to nothing, ValueError for anything but a regular file.
    """
    try:
        _check_regular(path, os.stat(path).st_mode)
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError as error:
        if path.is_symlink():
            target = shown(os.readlink(path))
            raise FileNotFoundError(f"{shown(path)} links to {target}, which is missing") from error
        raise FileNotFoundError(f"there is no {shown(path)}") from error
    with open(descriptor, "rb") as file:
        _check_regular(path, os.fstat(descriptor).st_mode)
        yield file


def _check_regular(path: Path, mode: int) -> None:
    if not stat.S_ISREG(mode):
        kind = next((name for test, name in _KINDS if test(mode)), "of another kind")
        raise Refused(f"{shown(path)} must be a regular file, found {kind}")


def read_regular(path: Path, limit: int, what: str) -> bytes:
    """Return the content of a regular file of at most `limit` bytes; `what` says why, in errors."""
    with open_regular(path) as file, guarded(path, what):
        size = os.fstat(file.fileno()).st_size
        if size > limit:
            raise Refused(
                f"{shown(path)} is too long for {what}: expected at most {limit} bytes, "
                f"found {size}"
            )
        return file.read(limit)


def read_up_to(stream: Readable, size: int) -> bytes:
    """Return the next `size` bytes, or those before the end where fewer are left.

    Memory grows with what is read, not with `size`. A compressed stream that ends early ends here.
    """
    content = bytearray()
    while len(content) < size:
        try:
            piece = stream.read(min(_CHUNK, size - len(content)))
        except EOFError:
            break
        if not piece:
            break
        content += piece
    return bytes(content)


def md5_of(path: Path) -> str:
    digest = md5(usedforsecurity=False)
    with open_regular(path) as file:
        while piece := file.read(_CHUNK):
            digest.update(piece)
    return digest.hexdigest()


def allocate(shape: tuple[int, ...], place: Path | str) -> NDArray[np.uint8]:
    """Return an empty array of bytes for the images of `place`.

    Raises ValueError where the machine has less memory than that.
    """
    size = int(np.prod(shape, dtype=object))
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    try:
        if size > memory:
            raise MemoryError
        return np.empty(shape, np.uint8)
    except (MemoryError, ValueError) as error:
        raise Refused(
            f"{shown(place)} holds {shape[0]:,} images, which take {size / 2**30:,.1f} GiB as "
            f"{' x '.join(map(str, shape[1:]))} bytes each: more than there is memory"
        ) from error
