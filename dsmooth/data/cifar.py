"""CIFAR-10 from its binary files, its Python archives, or either one's .tar.gz.

The formats (https://www.cs.toronto.edu/~kriz/cifar.html): a binary record is one label byte and
3,072 pixel bytes, the planes R, G, B of 32 x 32, row after row; a Python archive is a pickled
dictionary whose "data" is a (N, 3072) array of the same bytes and whose "labels" are a list.
"""

from __future__ import annotations

import io
import pickle
import tarfile
import warnings
import zlib
from collections.abc import Sequence
from hashlib import md5
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from dsmooth.data.dataset import ImageDataset
from dsmooth.data.published import published_md5

_PIXELS = 3 * 32 * 32
_RECORD = 1 + _PIXELS
_STEMS = {"train": [f"data_batch_{i}" for i in range(1, 6)], "test": ["test_batch"]}
_FULL_BATCH = 10_000
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
    inside it, then for either .tar.gz, which is read without unpacking it to disk. A training set
    may lack some of its five batches; `source` says how many there were.
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
        source=f"{place} ({len(images):,} images{part})",
    )


def read_cifar_binary(place: str, content: bytes) -> _Arrays:
    """Return pixels (N, 3072) uint8 and labels (N,) int64 of a binary batch.

    place: the file's name, for errors. Raises ValueError unless the content is a whole number of
    records with labels 0 .. 9.
    """
    if not content or len(content) % _RECORD:
        raise ValueError(
            f"{place} is cut or not in CIFAR-10's binary format: expected a multiple of {_RECORD} "
            f"bytes (a full batch: {_RECORD * _FULL_BATCH}), found {len(content)}; fetch it again"
        )
    records = np.frombuffer(content, np.uint8).reshape(-1, _RECORD)
    return records[:, 1:], _check_labels(place, records[:, 0])


# As numpy itself names it in this version: it moved from numpy.core to numpy._core.
_reconstruct = np.empty(0).__reduce__()[0]
_ADMITTED = {
    ("numpy.core.multiarray", "_reconstruct"): _reconstruct,
    ("numpy._core.multiarray", "_reconstruct"): _reconstruct,
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
}


class _ArchiveUnpickler(pickle.Unpickler):
    """An unpickler that can build dictionaries, lists, numbers, strings and numpy arrays only.

    A pickle may name any function to be called while it loads. These archives name three.
    """

    def find_class(self, module: str, name: str) -> Any:
        try:
            return _ADMITTED[module, name]
        except KeyError:
            raise pickle.UnpicklingError(
                f"it asks for {module}.{name}, which no CIFAR-10 archive needs"
            ) from None


def read_cifar_pickle(place: str, content: bytes) -> _Arrays:
    """Return pixels (N, 3072) uint8 and labels (N,) int64 of a Python archive.

    place: the file's name, for errors. Nothing that the archive names is run, save what rebuilds a
    numpy array. Raises ValueError for anything but CIFAR-10's dictionary. A full batch is checked
    against the MD5 that torchvision lists, if that is installed; a difference only warns.
    """
    try:
        # The archives were written by Python 2; numpy rebuilds its arrays from latin1 strings.
        archive = _ArchiveUnpickler(io.BytesIO(content), encoding="latin1").load()
    except Exception as error:  # a damaged pickle can raise almost anything
        reason = str(error) or type(error).__name__
        raise ValueError(
            f"{place} cannot be read as a CIFAR-10 Python archive: {reason}"
        ) from error
    if not isinstance(archive, dict):
        raise ValueError(f"{place} must hold a dictionary, found {type(archive).__name__}")
    # Archives written anew by Python 3 have keys of bytes.
    fields = {k.decode() if isinstance(k, bytes) else k: v for k, v in archive.items()}
    pixels, labels = fields.get("data"), fields.get("labels")
    if not isinstance(pixels, np.ndarray) or pixels.dtype != np.uint8 or pixels.ndim != 2:
        raise ValueError(
            f"{place} must hold under 'data' a uint8 array (N, 3072), found {_of(pixels)}"
        )
    if pixels.shape[1] != _PIXELS or not len(pixels):
        raise ValueError(f"{place} must hold under 'data' shape (N, 3072), found {pixels.shape}")
    if not isinstance(labels, list) or len(labels) != len(pixels):
        raise ValueError(
            f"{place} must hold under 'labels' a list of {len(pixels)}, found {_of(labels)}"
        )
    _warn_unless_published(place, content, len(pixels))
    return pixels, _check_labels(place, np.array(labels))


def _of(value: object) -> str:
    if isinstance(value, np.ndarray):
        return f"{value.dtype} {value.shape}"
    if isinstance(value, Sequence):
        return f"{type(value).__name__} of {len(value)}"
    return "nothing" if value is None else type(value).__name__


def _check_labels(place: str, labels: NDArray[Any]) -> NDArray[np.int64]:
    if labels.dtype.kind not in "iu" or labels.min() < 0 or labels.max() > 9:
        found = f"{labels.min()} .. {labels.max()}" if labels.dtype.kind in "iu" else labels.dtype
        raise ValueError(f"{place} is not CIFAR-10: expected labels 0 .. 9, found {found}")
    return labels.astype(np.int64)


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
            found = [(str(path), path.read_bytes()) for path in paths if path.is_file()]
            if found:
                return suffix, found, folder
    for suffix, inner, archive in _FORMATS:
        path = data_dir / archive
        if path.is_file():
            return (
                suffix,
                _read_archive(path, [f"{inner}/{s}{suffix}" for s in _STEMS[split]]),
                path,
            )
    stem = _STEMS[split][0]
    raise FileNotFoundError(
        f"{stem}.bin or {stem} is not in {data_dir}, nor in {_FORMATS[0][1]} or {_FORMATS[1][1]} "
        f"inside it, nor is {_FORMATS[0][2]} or {_FORMATS[1][2]}.\n"
        "Point --data-dir to the folder of CIFAR-10's files, or fetch them with --download."
    )


def _read_archive(path: Path, names: list[str]) -> list[_Batch]:
    batches = []
    try:
        with tarfile.open(path, "r:gz") as archive:
            for member in archive:  # one pass: going back would decompress the file again
                if member.name in names and member.isfile():
                    stream = archive.extractfile(member)
                    assert stream is not None  # by isfile()
                    batches.append((f"{path}/{member.name}", stream.read()))
    except (tarfile.TarError, EOFError, zlib.error, OSError) as error:
        raise ValueError(f"{path} is cut or damaged ({error}); fetch it again") from error
    if not batches:
        raise ValueError(f"{path} must hold {names[0]}, found no batch in it; fetch it again")
    return sorted(batches)
