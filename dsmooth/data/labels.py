"""Files of labels, .npz, which `dsmooth cluster` writes and training reads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from ..config import Classes
from ..files import guarded, printable, read_npz, write_npz
from .dataset import ImageDataset


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
        raise ValueError(
            f"{printable(path)} must have labels of the {len(dataset):,} {split} images of "
            f"{dataset.source}, found those of other images"
        )
    with guarded(path, "labels"):
        return replace(
            dataset,
            labels=torch.from_numpy(arrays[split]),
            class_names=Classes(tuple(map(str, arrays["names"].astype(str)))).names,
            source=f"{dataset.source}, labels of {printable(path)}",
        )
