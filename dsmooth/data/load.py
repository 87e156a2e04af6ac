"""One door to every data set."""

from __future__ import annotations

from pathlib import Path

from dsmooth.data.dataset import ImageDataset
from dsmooth.data.mnist import load_embedded_mnist, load_idx_dataset

DATASETS = ("mnist", "fashion-mnist")
SPLITS = ("train", "test")


def load_dataset(name: str, split: str, data_dir: Path | None = None) -> ImageDataset:
    """Return a data set's training or test images, read into memory.

    name: one of `DATASETS`; split: "train" or "test"; data_dir: the folder of its files. Without
    data_dir, "mnist" is the subset inside the package, and the data set's `source` says so.
    Raises FileNotFoundError if a file is missing, ValueError if one is damaged; each error names
    the file and what to do.
    """
    if name not in DATASETS:
        raise ValueError(f"name must be one of {', '.join(DATASETS)}, got {name!r}")
    if split not in SPLITS:
        raise ValueError(f"split must be one of {', '.join(SPLITS)}, got {split!r}")
    if data_dir is None:
        if name == "mnist":
            return load_embedded_mnist(split)
        raise ValueError(f"{name} needs --data-dir: only a subset of mnist comes with the package")
    return load_idx_dataset(name, split, Path(data_dir))
