"""Data sets: readers, the embedded MNIST subset, and the order in which training visits images.

Pillow is imported to decode image files alone, and torchvision to download, to read CIFAR-10's
Python files and to check packed files of Fashion-MNIST.
"""

from __future__ import annotations

import socket
from http.client import HTTPException
from pathlib import Path

from ..config import OWN
from ..fields import Argument, ArgumentError, check_one_of
from .cifar import load_cifar10
from .dataset import ImageDataset, round_to_bytes, to_bytes, to_float
from .folder import OnDecoded, load_celeba, load_folder
from .mnist import load_embedded_mnist, load_idx_dataset
from .order import epoch_order, indices_at
from .own import own_images
from .reading import FetchError, missing

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

DATASETS = ("mnist", "fashion-mnist", "cifar10", "celeba", "folder")
SPLITS = ("train", "test")

_TIMEOUT = 30.0  # seconds without an answer; torchvision sets none
# torchvision's class of each data set, and an address of its files.
_PUBLISHED = {
    "mnist": ("MNIST", "https://ossci-datasets.s3.amazonaws.com/mnist/"),
    "fashion-mnist": ("FashionMNIST", "https://github.com/zalandoresearch/fashion-mnist"),
    "cifar10": ("CIFAR10", "https://www.cs.toronto.edu/~kriz/cifar.html"),
    "celeba": ("CelebA", "https://mmlab.ie.cuhk.edu.hk/projects/CelebA.html"),
}


def load_dataset(
    name: str,
    split: str,
    data_dir: Path | str | None = None,
    *,
    download: bool = False,
    image_size: int | None = None,
    progress: OnDecoded | None = None,
) -> ImageDataset:
    """Return a data set's training or test images, read into memory.

    name: one of `DATASETS`.
    split: "train" or "test".
    data_dir: the folder of its files. Without it, "mnist" is the subset inside the package, and
        the data set's `source` says so.
    download: fetch the files into data_dir if they are not there (not for "folder").
    image_size: pixels a side after cropping and resizing, for "celeba" (32) and "folder" (none).
    progress: called with (images done, images in all) while image files are decoded.
    Raises FileNotFoundError for a missing file; ValueError for a damaged one and for an argument
    that does not fit; ConnectionError if a download fails. Each says in one or two lines which file
    and what to do.
    """
    if name == OWN:
        raise ArgumentError(
            "data",
            f"must be one of {', '.join(DATASETS)}: the data set of this run was given to "
            "dsmooth.train in Python, where no command finds it",
        )
    check_one_of("data", name, DATASETS)
    check_one_of("split", split, SPLITS)
    if image_size is not None and name not in ("celeba", "folder"):
        raise ArgumentError("image_size", f"is for celeba and folder, got it for {name}")
    if image_size is not None and (image_size < 4 or image_size % 4):
        raise ArgumentError("image_size", f"must be a positive multiple of 4, got {image_size}")
    if data_dir is None:
        if download:
            raise ArgumentError("download", "needs", Argument("data_dir"), "to download into")
        if name == "mnist":
            return load_embedded_mnist(split)
        raise missing(name, f"{name} needs the folder of its files")
    folder = Path(data_dir)
    try:
        if not folder.is_dir():
            raise missing(name, f"{folder} is not a folder")
        if name == "cifar10":
            return load_cifar10(split, folder)
        if name in ("celeba", "folder"):
            load = load_celeba if name == "celeba" else load_folder
            return load(split, folder, image_size, progress)
        return load_idx_dataset(name, split, folder)
    except FileNotFoundError:
        if not download:
            raise
    _download(name, folder)
    return load_dataset(name, split, folder, image_size=image_size, progress=progress)


def _download(name: str, folder: Path) -> None:
    """Fetch a data set into `folder`, in torchvision's layout."""
    if name not in _PUBLISHED:
        raise ArgumentError("download", f"is for {', '.join(_PUBLISHED)}, got {name!r}")
    from torchvision import datasets

    torchvision_class, address = _PUBLISHED[name]
    timeout = socket.getdefaulttimeout()
    socket.setdefaulttimeout(_TIMEOUT)
    try:
        getattr(datasets, torchvision_class)(root=str(folder), download=True)
    except (OSError, RuntimeError, HTTPException, EOFError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        failed = f"could not download {name} to {folder}: {reason}\nFetch it from {address} by hand"
        point = Argument("data_dir")
        raise FetchError("", failed, "and point", point, "to its files") from error
    finally:
        socket.setdefaulttimeout(timeout)
