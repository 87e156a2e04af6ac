"""A file of labels for the images of a data set: what `dsmooth cluster` writes, training reads."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from ..files import printable, write_npz
from .dataset import ImageDataset
from .reading import InvalidFile, read_npz


def write_labels(path: Path, datasets: Sequence[ImageDataset], names: Sequence[str]) -> None:
    """Write a .npz of the labels (N,) of each split, the digest of its images, and the names."""
    arrays = {"names": np.array(names)}
    for dataset in datasets:
        arrays[dataset.split] = dataset.known_labels().numpy()
        arrays[f"{dataset.split}_images"] = np.array(_images_digest(dataset))
    write_npz(path, arrays)


def with_labels(dataset: ImageDataset, path: Path) -> ImageDataset:
    """The images of `dataset` with the labels that a file has for its split.

    Raises ValueError, naming the file, for labels of other images.
    """
    split = dataset.split
    arrays = read_npz(path, (split, f"{split}_images", "names"))
    labels, names = arrays[split], arrays["names"]
    if str(arrays[f"{split}_images"]) != _images_digest(dataset):
        raise InvalidFile(
            f"{printable(path)} must have labels of the {len(dataset):,} {split} images of "
            f"{dataset.source}, found those of other images"
        )
    whole = labels.dtype.kind in "iu" and labels.shape == (len(dataset),)
    if (
        not whole
        or names.ndim != 1
        or not all(0 <= n < len(names) for n in (labels.min(), labels.max()))
    ):
        raise InvalidFile(
            f"{printable(path)} must hold a label of each {split} image, among those it names"
        )
    return replace(
        dataset,
        labels=torch.from_numpy(labels.astype(np.int64)),
        class_names=tuple(map(str, names)),
        source=f"{dataset.source}, labels of {printable(path)}",
    )


def _images_digest(dataset: ImageDataset) -> str:
    """SHA-256 of the images alone."""
    pixels = dataset.images.contiguous().numpy()
    return hashlib.sha256(str(pixels.shape).encode() + pixels.tobytes()).hexdigest()
