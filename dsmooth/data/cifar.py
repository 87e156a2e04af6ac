"""CIFAR-10 from its binary files, its Python archives, or either one's .tar.gz.

The formats (https://www.cs.toronto.edu/~kriz/cifar.html): a binary record is one label byte and
3,072 pixel bytes, the planes R, G, B of 32 x 32, row after row; a Python archive is a pickled
dictionary whose "data" is a (N, 3072) array of the same bytes and whose "labels" are a list.
"""

from __future__ import annotations

import gzip
import tarfile
import warnings
from collections.abc import Sequence
from hashlib import md5
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from dsmooth.data.cifar_pickle import PickledArray, read_pickle
from dsmooth.data.dataset import ImageDataset
from dsmooth.data.guard import Readable, Refused, guarded, open_regular, read_regular, shown
from dsmooth.data.published import published_md5

_PIXELS = 3 * 32 * 32
_RECORD = 1 + _PIXELS
_STEMS = {"train": [f"data_batch_{i}" for i in range(1, 6)], "test": ["test_batch"]}
_FULL_BATCH = 10_000
# By a batch's suffix. Protocol 2 of Python 3 writes pixels of 128 or more as two bytes.
_MAX_BYTES = {".bin": _RECORD * _FULL_BATCH, "": 1 << 26}
_MAX_ARCHIVE = 6 * _MAX_BYTES[""]  # unpacked; the published ones have 0.17 GiB
_MAX_MEMBERS = 100  # the published archives have 9
# (suffix of a batch, folder inside the archive, archive)
_FORMATS = (
    (".bin", "cifar-10-batches-bin", "cifar-10-binary.tar.gz"),
    ("", "cifar-10-batches-py", "cifar-10-python.tar.gz"),
)

# A batch's bytes with the place that errors name.
_Batch = tuple[str, bytes]
_Arrays = tuple[NDArray[np.uint8], NDArray[np.int64]]


def load_cifar10(split: str, data_dir: Path) -> ImageDataset:
    """Return CIFAR-10 from the files in `data_dir`, in the order of its batches.

    Looks for binary files, then for Python archives, in `data_dir` itself or the usual folder
    inside it; then for either .tar.gz. An archive is read without unpacking it to disk. A training
    set may lack some of its five batches; `source` says how many there were.
    Raises FileNotFoundError if there is none, ValueError for a file that is cut or of another form.
    """
    suffix, batches, place = _find(split, data_dir)
    read = read_cifar_binary if suffix == ".bin" else read_cifar_pickle
    parts = [read(place_of_batch, content) for place_of_batch, content in batches]
    images = np.concatenate([images for images, _ in parts]).reshape(-1, 3, 32, 32)
    labels = np.concatenate([labels for _, labels in parts])
    part = f", {len(batches)} of 5 batches" if split == "train" and len(batches) < 5 else ""
    return ImageDataset(
        images=torch.from_numpy(images),
        labels=torch.from_numpy(labels),
        name="cifar10",
        split=split,
        source=f"{shown(place)} ({len(images):,} images{part})",
    )


def read_cifar_binary(place: str, content: bytes) -> _Arrays:
    """Return pixels (N, 3072) uint8 and labels (N,) int64 of a binary batch.

    place: the file's name, for errors. Raises ValueError unless the content is a whole number of
    records with labels 0 .. 9.
    """
    if len(content) > _MAX_BYTES[".bin"]:
        raise Refused(
            f"{place} is too long: expected at most {_FULL_BATCH} records of {_RECORD} bytes, "
            f"found {len(content)} bytes"
        )
    if not content or len(content) % _RECORD:
        raise Refused(
            f"{place} is cut or not in CIFAR-10's binary format: expected a multiple of {_RECORD} "
            f"bytes (a full batch: {_RECORD * _FULL_BATCH}), found {len(content)}; fetch it again"
        )
    records = np.frombuffer(content, np.uint8).reshape(-1, _RECORD)
    return records[:, 1:], _check_labels(place, records[:, 0].tolist())


def read_cifar_pickle(place: str, content: bytes) -> _Arrays:
    """Return pixels (N, 3072) uint8 and labels (N,) int64 of a Python archive.

    place: the file's name, for errors. Nothing that the archive names is run.
    Raises ValueError for anything but CIFAR-10's dictionary. A full batch is checked against the
    MD5 that torchvision lists, if that is installed; a difference only warns.
    """
    with guarded(place, "a CIFAR-10 Python archive"):
        archive = read_pickle(content)
        if not isinstance(archive, dict):
            raise Refused(f"{place} must hold a dictionary, found {type(archive).__name__}")
        found, labels = archive.get("data"), archive.get("labels")
        if not isinstance(found, PickledArray) or found.dtype != "uint8" or len(found.shape) != 2:
            raise Refused(
                f"{place} must hold under 'data' a uint8 array (N, 3072), found {_of(found)}"
            )
        n = found.shape[0]
        if found.shape[1] != _PIXELS or not 0 < n <= _FULL_BATCH:
            raise Refused(
                f"{place} must hold under 'data' shape (N, 3072), N at most {_FULL_BATCH}, "
                f"found {found.shape}"
            )
        if not isinstance(labels, list) or len(labels) != n:
            raise Refused(f"{place} must hold under 'labels' a list of {n}, found {_of(labels)}")
        others = [label for label in labels if type(label) is not int]
        if others:
            raise Refused(
                f"{place} is not CIFAR-10: expected labels 0 .. 9, found {_of(others[0])}"
            )
        pixels, classes = found.bytes_array(), _check_labels(place, labels)
    _warn_unless_published(place, content, n)
    return pixels, classes


def _of(value: object) -> str:
    if isinstance(value, PickledArray):
        return f"{value.dtype} {value.shape}"[:200]
    if isinstance(value, list):
        return f"list of {len(value)}"
    return "nothing" if value is None else type(value).__name__


def _check_labels(place: str, labels: Sequence[int]) -> NDArray[np.int64]:
    low, high = min(labels), max(labels)
    if low < 0 or high > 9:
        found = f"{low} .. {high}" if max(-low, high) < 1 << 64 else "larger ones"
        raise Refused(f"{place} is not CIFAR-10: expected labels 0 .. 9, found {found}")
    return np.array(labels, np.int64)


def _warn_unless_published(place: str, content: bytes, n: int) -> None:
    expected = published_md5("CIFAR10").get(Path(place).name) if n == _FULL_BATCH else None
    if expected is not None and md5(content, usedforsecurity=False).hexdigest() != expected:
        warnings.warn(
            f"{place} is not the published file (its MD5 is not {expected}): written anew, other "
            "data, or damaged",
            stacklevel=3,
        )


def _find(split: str, data_dir: Path) -> tuple[str, list[_Batch], Path]:
    """Return the batches' suffix, the batches and the folder or archive that holds them."""
    for suffix, inner, _ in _FORMATS:
        for folder in (data_dir, data_dir / inner):
            paths = [folder / (stem + suffix) for stem in _STEMS[split]]
            found = [
                (shown(path), read_regular(path, _MAX_BYTES[suffix], "a CIFAR-10 batch"))
                for path in paths
                if path.is_file()
            ]
            if found:
                return suffix, found, folder
    for suffix, inner, archive in _FORMATS:
        path = data_dir / archive
        if path.is_file():
            names = [f"{inner}/{stem}{suffix}" for stem in _STEMS[split]]
            return suffix, _read_archive(path, names, _MAX_BYTES[suffix]), path
    stem = _STEMS[split][0]
    raise FileNotFoundError(
        f"{stem}.bin or {stem} is not in {data_dir}, nor in {_FORMATS[0][1]} or {_FORMATS[1][1]} "
        f"inside it, nor is {_FORMATS[0][2]} or {_FORMATS[1][2]}.\n"
        "Point --data-dir to the folder of CIFAR-10's files, or fetch them with --download."
    )


class _Bounded:
    """The first `limit` bytes of a stream; ValueError if it goes on after them."""

    def __init__(self, stream: Readable, limit: int) -> None:
        self._stream, self._left = stream, limit

    def read(self, size: int) -> bytes:
        content = self._stream.read(min(size, self._left + 1))
        self._left -= len(content)
        if self._left < 0:
            raise ValueError(f"it decompresses to more than {_MAX_ARCHIVE} bytes")
        return content


def _read_archive(path: Path, names: list[str], limit: int) -> list[_Batch]:
    """Return the batches `names`, regular members of at most `limit` bytes. Nothing is unpacked."""
    batches = {}
    with open_regular(path) as file, guarded(path, "a .tar.gz; it is cut or damaged"):
        stream = _Bounded(gzip.GzipFile(fileobj=file), _MAX_ARCHIVE)
        with tarfile.open(fileobj=stream, mode="r|") as archive:  # type: ignore[call-overload]
            for number, member in enumerate(archive):
                if number == _MAX_MEMBERS:
                    raise ValueError(f"it has more than {_MAX_MEMBERS} members")
                if member.name not in names:
                    continue
                place = f"{shown(path)}/{member.name}"
                if not member.isreg() or member.issparse() or not 0 <= member.size <= limit:
                    raise Refused(
                        f"{place} must be a regular file of at most {limit} bytes, found "
                        f"type {member.type!r} of {member.size}"
                    )
                if place in batches:
                    raise Refused(f"{place} must be there once, found it twice")
                batches[place] = archive.extractfile(member).read()
    if not batches:
        raise Refused(f"{shown(path)} must hold {names[0]}, found no batch in it; fetch it again")
    return sorted(batches.items())
