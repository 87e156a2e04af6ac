"""Data sets: readers, the embedded MNIST subset, and the order in which training visits images.

Pillow is imported only to decode image files, and torchvision only to read published data sets.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ..config import OWN, RESIZED
from ..fields import SettingError, check_one_of
from ..pixels import are_sides
from .dataset import ImageDataset, round_to_bytes, to_bytes, to_float
from .folder import MissingFiles, load_folder
from .order import epoch_order, indices_at
from .own import own_images
from .published import PUBLISHED, load_embedded_mnist, load_published

__all__ = [
    "DATASETS",
    "SPLITS",
    "ImageDataset",
    "epoch_order",
    "indices_at",
    "load_dataset",
    "own_images",
    "round_to_bytes",
    "to_bytes",
    "to_float",
]

DATASETS = (*PUBLISHED, "folder")
SPLITS = ("train", "test")


def load_dataset(
    name: str,
    split: str,
    data_dir: Path | str | None = None,
    *,
    download: bool = False,
    image_size: int | None = None,
) -> ImageDataset:
    """Return a data set's training or test images, read into memory.

    name: one of `DATASETS`.
    split: "train" or "test"; or "all" images of a folder.
    data_dir: the folder of images of "folder", else what torchvision calls root: "mnist" lies in
        data_dir/MNIST/raw. Without it, "mnist" is the subset inside the package, and the data set's
        `source` says so.
    download: fetch the files into data_dir if they are not there (not for "folder").
    image_size: pixels a side after cropping and resizing, for "celeba" (32) and "folder" (none).
    Raises FileNotFoundError for a missing file; ValueError for a damaged one and for an argument
    that does not fit; ConnectionError if a download fails. Each says in one or two lines which file
    and what to do.
    """
    return load_splits(name, (split,), data_dir, download, image_size)[0]


def load_splits(
    name: str,
    splits: Sequence[str],
    data_dir: Path | str | None,
    download: bool,
    image_size: int | None,
) -> list[ImageDataset]:
    """The splits of a data set, as `load_dataset` returns each; image files are opened once."""
    if name == OWN:
        raise SettingError(
            "data",
            "must name a data set: the images of this run were given to dsmooth.train in Python. "
            "Measure it there (dsmooth.evaluate), or write the images to measure to a folder "
            "(dsmooth.to_pil), name that folder, and set",
            data="folder",
        )
    check_one_of("data", name, DATASETS)
    for split in splits:
        check_one_of("split", split, (*SPLITS, "all") if name == "folder" else SPLITS)
    if image_size is not None and not (name in RESIZED and are_sides(image_size)):
        words = f"must be a positive multiple of 4, for {' or '.join(RESIZED)}"
        raise SettingError("image_size", f"{words}, got {image_size} for {name}")
    if download and (data_dir is None or name not in PUBLISHED):
        raise SettingError("download", f"is for {', '.join(PUBLISHED)} and needs", data_dir=None)
    if data_dir is None:
        if name == "mnist":
            return [load_embedded_mnist(split) for split in splits]
        raise MissingFiles(
            (), f'"{name}" needs the folder of its files; to name it, set', data_dir=None
        )
    folder = Path(data_dir)
    if name == "folder":
        return load_folder(splits, folder, image_size)
    return [load_published(name, split, folder, download, image_size) for split in splits]
