"""Arrays of a .npz whose sizes are checked before they are decompressed; nothing is unpickled."""

from __future__ import annotations

import io
import math
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from dsmooth.data.guard import Refused, guarded, open_regular, read_up_to, shown

_MAX_READ = 1 << 20  # zipfile reads the directory of the archive in one piece, other data in less
_MAX_MEMBERS = 1000
_MAX_HEADER = 10_000  # characters; a plain array's has 128
_KINDS = "biufU"  # bool, integers, floating point, text


class _ShortReads(io.RawIOBase):
    """A file that gives no piece longer than `_MAX_READ`."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file

    def read(self, size: int = -1) -> bytes:
        if size > _MAX_READ:
            raise ValueError(f"it asks for {size} bytes at once, at most {_MAX_READ} are read")
        return self._file.read(_MAX_READ if size < 0 else size)

    def seek(self, offset: int, whence: int = 0) -> int:
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        return self._file.tell()

    def seekable(self) -> bool:
        return True


def read_npz(
    path: Path, names: Sequence[str] | None = None, limit: int | None = None
) -> dict[str, NDArray[Any]]:
    """Return the arrays `names` of a .npz (all by default), each of at most `limit` bytes.

    The zip directory and each array's header are read first; memory is what the headers promise.
    Raises FileNotFoundError or ValueError, naming the file and what is wrong.
    """
    with (
        open_regular(path) as file,
        guarded(path, "a .npz without pickled objects"),
        zipfile.ZipFile(_ShortReads(file)) as archive,
    ):
        members = archive.infolist()
        if len(members) > _MAX_MEMBERS:
            raise ValueError(f"it holds {len(members)} arrays, at most {_MAX_MEMBERS} are read")
        found = {member.filename.removesuffix(".npy"): member for member in members}
        names = list(found) if names is None else names
        missing = [name for name in names if name not in found]
        if missing:
            raise Refused(
                f"{shown(path)} must hold {', '.join(names)}, found no {', '.join(missing)}"
            )
        return {name: _read_array(archive, found[name], limit) for name in names}


def _read_array(
    archive: zipfile.ZipFile, member: zipfile.ZipInfo, limit: int | None
) -> NDArray[Any]:
    if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise ValueError(f"{member.filename!a} is neither stored nor deflated")
    with archive.open(member) as stream:
        version = npy.read_magic(stream)
        if version != (1, 0):
            raise ValueError(f"{member.filename!a} has .npy version {version}, not 1.0")
        shape, fortran, dtype = npy.read_array_header_1_0(stream, max_header_size=_MAX_HEADER)
        size = math.prod(shape) * dtype.itemsize
        if dtype.kind not in _KINDS or any(length < 0 for length in shape):
            raise ValueError(f"{member.filename!a} holds {dtype} {shape}")
        if limit is not None and size > limit:
            raise ValueError(f"{member.filename!a} promises {size} bytes, at most {limit} are read")
        content = read_up_to(stream, size)
        if len(content) != size or stream.read(1):  # at the end this checks the CRC-32
            raise ValueError(f"{member.filename!a} does not hold the {size} bytes it promises")
    array = np.frombuffer(bytearray(content), dtype)
    return array.reshape(shape, order="F" if fortran else "C")
