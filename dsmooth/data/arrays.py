"""Images as arrays: those of a .npz, and those that a user has in Python."""

from __future__ import annotations

import zipfile
from collections.abc import Sequence, Sized
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..config import OWN
from .dataset import ImageDataset
from .reading import InvalidFile, check_memory, guarded, open_regular, printable

HELD_OUT = 10  # the last of every so many images is held out of a data set without a test set


@runtime_checkable
class Items(Sized, Protocol):
    """A map-style data set of torch: images, or images with labels, by number."""

    def __getitem__(self, index: int, /) -> Any: ...


# The argument of `dsmooth.train`: images, which it splits, or (training images, held-out images).
OwnData = ImageDataset | Tensor | Items | tuple[ImageDataset | Tensor | Items, Any]


def read_npz(path: Path, names: Sequence[str] | None = None) -> dict[str, NDArray[Any]]:
    """Return the arrays `names` of a .npz, all by default; nothing is unpickled.

    The zip directory states their sizes, and zipfile unpacks no more.
    Raises FileNotFoundError or ValueError, naming the file and what is wrong.
    """
    with (
        open_regular(path) as file,
        guarded(path, "a .npz without pickled objects"),
        zipfile.ZipFile(file) as archive,
    ):
        members = {member.filename.removesuffix(".npy"): member for member in archive.infolist()}
        names = list(members) if names is None else names
        missing = [name for name in names if name not in members]
        if missing:
            raise InvalidFile(
                f"{printable(path)} must hold {', '.join(names)}, found no {', '.join(missing)}"
            )
        check_memory(path, sum(members[name].file_size for name in names))
        return {name: _read_array(archive, members[name]) for name in names}


def _read_array(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> NDArray[Any]:
    with archive.open(member) as stream:
        array = np.lib.format.read_array(stream, allow_pickle=False)
        if stream.read(1):  # at the end zipfile compares the CRC-32
            raise ValueError(f"{member.filename!a} holds more than its header promises")
    return array


def own_images(dataset: ImageDataset | Tensor | Items, split: str = "train") -> ImageDataset:
    """The images of a data set of one's own, in memory as bytes.

    dataset: an `ImageDataset`; uint8 images (N, C, H, W); or anything with a length whose items are
    images, or tuples that begin with an image and perhaps a whole-number label, such as a
    `torch.utils.data.Dataset`. An image is a PIL image, uint8 (C, H, W) or (H, W), or floating
    point in [0, 1] (as torchvision's ToTensor makes it), which is rounded to the nearest byte.
    Raises ValueError, with the item's number, for anything else and for images of several shapes.
    """
    if isinstance(dataset, ImageDataset):
        return dataset
    if isinstance(dataset, Tensor):
        return ImageDataset(dataset, None, OWN, split, "images given in Python")
    if not len(dataset):
        raise ValueError("the data set must hold images, got none")
    images, labels = [], []
    for number in range(len(dataset)):
        item = dataset[number]
        parts = item if isinstance(item, tuple | list) else (item,)
        images.append(_as_bytes(parts[0], number))
        if images[-1].shape != images[0].shape:
            raise ValueError(
                f"images must have one shape, got {tuple(images[0].shape)} and item {number} of "
                f"{tuple(images[-1].shape)}"
            )
        if len(parts) > 1 and isinstance(parts[1], int | np.integer | Tensor):
            labels.append(int(parts[1]))
    source = f"a {type(dataset).__name__} given in Python"
    every = torch.tensor(labels) if len(labels) == len(images) else None
    return ImageDataset(torch.stack(images), every, OWN, split, source)


def split_own(dataset: OwnData) -> tuple[ImageDataset, ImageDataset]:
    """Training images and held-out images of a data set given to `dsmooth.train`.

    A pair of data sets stays as it is. The last of every `HELD_OUT` images of a single one is held
    out, so at least that many are needed. Raises ValueError as `own_images` does, for fewer images,
    and for a height or width that is not a multiple of 4.
    """
    if isinstance(dataset, tuple):
        train, test = own_images(dataset[0], "train"), own_images(dataset[1], "test")
    else:
        every = own_images(dataset)
        if len(every) < HELD_OUT:
            raise ValueError(
                f"the data set must hold {HELD_OUT} images or more, one of which is held out, got "
                f"{len(every)}; or give (training images, held-out images)"
            )
        held_out = torch.arange(len(every)) % HELD_OUT == HELD_OUT - 1
        train, test = _subset(every, ~held_out, "train"), _subset(every, held_out, "test")
    shape = train.images.shape[1:]
    if test.images.shape[1:] != shape:
        raise ValueError(
            f"held-out images must have the shape {tuple(shape)} of the training images, got "
            f"{tuple(test.images.shape[1:])}"
        )
    if shape[1] % 4 or shape[2] % 4:
        raise ValueError(
            f"images must have a height and width that are multiples of 4, got {shape[1]} x "
            f"{shape[2]}: crop, pad or resize them"
        )
    return train, test


def _subset(dataset: ImageDataset, chosen: Tensor, split: str) -> ImageDataset:
    labels = None if dataset.labels is None else dataset.labels[chosen]
    return ImageDataset(dataset.images[chosen], labels, OWN, split, dataset.source)


def _as_bytes(image: Any, number: int) -> Tensor:
    """One image as uint8 (C, H, W). Raises ValueError, naming the item, for anything else."""
    values = image if isinstance(image, Tensor) else torch.from_numpy(np.array(image))
    if not isinstance(image, Tensor) and values.ndim == 3 and hasattr(image, "getbands"):
        values = values.permute(2, 0, 1)  # the channels of a PIL image come last
    if values.ndim == 2:
        values = values[None]
    if values.ndim != 3 or values.shape[0] not in (1, 3):
        raise ValueError(
            f"item {number} must be an image (C, H, W) or (H, W) with C = 1 or 3, got shape "
            f"{tuple(values.shape)}"
        )
    if values.is_floating_point() and bool(((values >= 0) & (values <= 1)).all()):
        return (values * 255).round().to(torch.uint8)
    if values.dtype != torch.uint8:
        raise ValueError(
            f"item {number} must be uint8 or floating point in [0, 1], got {values.dtype} from "
            f"{values.min()} to {values.max()}"
        )
    return values
