"""Reading of files that strangers wrote, .npz among them: bounded sizes, one kind of error."""

from __future__ import annotations

import math
import os
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryFile, gettempdir
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..files import open_regular, printable
from ..machine import memory_bytes


class InvalidFile(ValueError):
    """A file that a reader refuses. The message names it and says what is wrong."""


def missing(name: str, what: str) -> FileNotFoundError:
    """The error where files of a data set are not there, with the ways out."""
    point = f"{what}.\nPoint `data_dir` to"
    if name == "folder":
        return FileNotFoundError(f"{point} a folder of images")
    subset = ", or leave it out to use the embedded subset" if name == "mnist" else ""
    return FileNotFoundError(
        f"{point} such a folder{subset}, or fetch the files there with `download=True`"
    )


@contextmanager
def guarded(source: Path | str, what: str) -> Iterator[None]:
    """Turn any error inside into a ValueError of one line: decoders raise all kinds."""
    try:
        yield
    except InvalidFile:
        raise
    except Exception as error:
        reason = " ".join(ascii(str(error))[1:-1].split())[:200] or type(error).__name__
        raise InvalidFile(f"{printable(source)} cannot be read as {what} ({reason})") from error


def check_memory(source: Path | str, size: int) -> None:
    """Raise ValueError, naming `source`, if its content takes more bytes than there is memory."""
    if size > memory_bytes():
        raise InvalidFile(
            f"{printable(source)} takes {size / 2**30:,.1f} GiB unpacked, more than there is memory"
        )


def make_room(source: Path | str, shape: tuple[int, ...], dtype: Any = np.uint8) -> NDArray[Any]:
    """An array to fill: in memory, or mapped from a nameless file where that is too small."""
    size = math.prod(shape) * np.dtype(dtype).itemsize
    try:
        check_memory(source, size)
    except InvalidFile as error:
        with TemporaryFile() as file:
            try:
                os.posix_fallocate(file.fileno(), 0, size)
            except OSError as full:
                raise InvalidFile(f"{error}, and than {gettempdir()} has room for") from full
            return np.memmap(file, dtype, "r+", shape=shape)
    return np.empty(shape, dtype)


def read_npz(path: Path, names: Sequence[str] | None = None) -> dict[str, NDArray[Any]]:
    """Return the arrays `names` of a .npz, all by default; nothing is unpickled."""
    with (
        open_regular(path) as file,
        guarded(path, "a .npz without pickled objects"),
        zipfile.ZipFile(file) as archive,
    ):
        members = {member.filename.removesuffix(".npy"): member for member in archive.infolist()}
        names = list(members) if names is None else names
        absent = [name for name in names if name not in members]
        if absent:
            raise InvalidFile(
                f"{printable(path)} must hold {', '.join(names)}, found no {', '.join(absent)}"
            )
        check_memory(path, sum(members[name].file_size for name in names))
        arrays = {}
        for name in names:
            with archive.open(members[name]) as stream:
                arrays[name] = np.lib.format.read_array(stream, allow_pickle=False)
                if stream.read(1):  # at the end zipfile compares the CRC-32
                    raise ValueError(f"{name!a} holds more than its header promises")
        return arrays
