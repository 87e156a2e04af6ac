"""Arrays of a .npz, read with care."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..files import open_regular, printable
from .reading import InvalidFile, check_memory, guarded


def read_npz(path: Path, names: Sequence[str] | None = None) -> dict[str, NDArray[Any]]:
    """Return the arrays `names` of a .npz, all by default; nothing is unpickled."""
    with _opened_npz(path) as archive:
        members = {member.filename.removesuffix(".npy"): member for member in archive.infolist()}
        names = list(members) if names is None else names
        missing = [name for name in names if name not in members]
        if missing:
            raise InvalidFile(
                f"{printable(path)} must hold {', '.join(names)}, found no {', '.join(missing)}"
            )
        check_memory(path, sum(members[name].file_size for name in names))
        arrays = {}
        for name in names:
            with archive.open(members[name]) as stream:
                arrays[name] = np.lib.format.read_array(stream, allow_pickle=False)
                if stream.read(1):  # at the end zipfile compares the CRC-32
                    raise ValueError(f"{name!a} holds more than its header promises")
        return arrays


def names_in_npz(path: Path) -> set[str]:
    """Names of the arrays in a .npz. Raises as `read_npz` does."""
    with _opened_npz(path) as archive:
        return {name.removesuffix(".npy") for name in archive.namelist()}


@contextmanager
def _opened_npz(path: Path) -> Iterator[zipfile.ZipFile]:
    with (
        open_regular(path) as file,
        guarded(path, "a .npz without pickled objects"),
        zipfile.ZipFile(file) as archive,
    ):
        yield archive
