"""Reading of files that strangers wrote, .npz among them: bounded sizes, one kind of error.

A file of labels is such a .npz: `dsmooth cluster` writes it, and training reads it.
"""

from __future__ import annotations

import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ..fields import SettingError
from ..files import open_regular, printable, write_npz
from ..machine import memory_bytes
from .dataset import ImageDataset

LABELS_FILE = "labels.npz"  # in a folder of clusters


class InvalidFile(SettingError):
    """A file that a reader refuses. The message names it and says what is wrong."""

    def __init__(self, message: str, **remedy: object) -> None:
        super().__init__((), message, **remedy)


class MissingFiles(SettingError, FileNotFoundError):
    """Files of a data set are not there."""


def missing(name: str, what: str) -> MissingFiles:
    """The error where files of a data set are not there, with the ways out."""
    if name == "folder":
        return MissingFiles((), f"{what}.\nTo name a folder of images, set", data_dir=None)
    subset = "Leave the folder out to use the embedded subset. " if name == "mnist" else ""
    ways = "To name such a folder, or to fetch the files into it, set"
    return MissingFiles((), f"{what}.\n{subset}{ways}", data_dir=None, download=True)


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


def read_npz(path: Path, names: Sequence[str] | None = None) -> dict[str, NDArray[Any]]:
    """Return the arrays `names` of a .npz, all by default; nothing is unpickled."""
    with (
        open_regular(path) as file,
        guarded(path, "a .npz without pickled objects"),
        zipfile.ZipFile(file) as archive,
    ):
        members = {member.filename.removesuffix(".npy"): member for member in archive.infolist()}
        names = list(members) if names is None else names
        check_memory(path, sum(members[name].file_size for name in names))
        arrays = {}
        for name in names:
            with archive.open(members[name]) as stream:
                arrays[name] = np.lib.format.read_array(stream, allow_pickle=False)
                stream.read()  # at the end zipfile compares the CRC-32
        return arrays


def write_labels(path: Path, datasets: Sequence[ImageDataset], names: Sequence[str]) -> None:
    """Write a .npz of the labels (N,) of each split, the digest of its images, and the names."""
    arrays = {"names": np.array(names)}
    for dataset in datasets:
        arrays[dataset.split] = dataset.known_labels().numpy()
        arrays[f"{dataset.split}_images"] = np.array(replace(dataset, labels=None).digest)
    write_npz(path, arrays)


def with_labels(dataset: ImageDataset, path: Path) -> ImageDataset:
    """The images of `dataset` with the labels that a file has for its split.

    Raises ValueError, naming the file, for labels of other images.
    """
    split = dataset.split
    arrays = read_npz(path, (split, f"{split}_images", "names"))
    if str(arrays[f"{split}_images"]) != replace(dataset, labels=None).digest:
        raise InvalidFile(
            f"{printable(path)} must have labels of the {len(dataset):,} {split} images of "
            f"{dataset.source}, found those of other images"
        )
    with guarded(path, "labels"):
        return replace(
            dataset,
            labels=torch.from_numpy(arrays[split]),
            class_names=tuple(map(str, arrays["names"])),
            source=f"{dataset.source}, labels of {printable(path)}",
        )
