"""Images as arrays: those of a .npz, and those that a user has in Python."""

from __future__ import annotations

import warnings
import zipfile
from collections.abc import Iterator, Mapping, Sequence, Sized
from contextlib import contextmanager
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..config import OWN
from ..files import open_regular, printable
from .dataset import ImageDataset, to_bytes
from .reading import InvalidFile, check_memory, guarded, make_room

HELD_OUT = 10  # the last of every so many images is held out of a data set without a test set
# Names that data sets of the Hugging Face Hub give to a column of images, to one of labels, and to
# the images that are held out.
IMAGES = ("image", "img", "images", "pixel_values")
LABELS = ("label", "labels", "fine_label")
HELD_OUT_SPLITS = ("validation", "valid", "val", "test")


# The argument of `dsmooth.train`: images, which it splits; (training images, held-out images); or
# splits by name.
OwnData = Sized


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


def own_images(dataset: Sized, split: str = "train") -> ImageDataset:
    """The images of a data set of one's own, as bytes; in a temporary file if memory is too small.

    dataset: an `ImageDataset`; an array or tensor (N, C, H, W), (N, H, W, C) or (N, H, W); a data
    set of the Hugging Face Hub or a dictionary of its splits, of which `split` is taken; a
    DataLoader; or anything with a length whose items are images, or tuples that begin with an image
    and perhaps a whole-number label, such as a `torch.utils.data.Dataset`. An image is a PIL image
    or an array (C, H, W), (H, W, C) or (H, W). Arrays are uint8, or floating point in [0, 1] (as
    torchvision's ToTensor makes it) or [-1, 1], which is rounded to the nearest byte.
    Raises ValueError, with the item's number, for anything else and for images of several shapes.
    """
    if isinstance(dataset, ImageDataset):
        return dataset
    if isinstance(dataset, Mapping):
        if split not in dataset:
            raise ValueError(f"the data set has no split {split!r}, but {', '.join(dataset)}")
        return own_images(dataset[split], split)
    if hasattr(dataset, "dataset") and hasattr(dataset, "batch_size"):  # a DataLoader
        return own_images(dataset.dataset, split)
    if isinstance(dataset, Tensor | np.ndarray):
        images = _as_bytes(_channels_first(_tensor(dataset, "images"), "images"))
        return ImageDataset(images, None, OWN, split, "images given in Python")
    if not isinstance(dataset, Sized) or not len(dataset):
        raise ValueError("the data set must have a length and hold images, got none")
    # A data set that is read in order inherits a __getitem__ that only raises.
    given: Any = dataset
    items = given if hasattr(type(given), "__iter__") else map(given.__getitem__, range(len(given)))
    source, count = f"a {type(dataset).__name__} given in Python", 0
    images, labels, labelled = torch.empty(0), torch.empty(0), True
    for number, item in enumerate(islice(items, len(dataset))):
        image, label = _image_and_label(number, item)
        if number == 0:
            kind = np.uint8 if image.dtype == torch.uint8 else np.float32
            images = torch.from_numpy(make_room(source, (len(dataset), *image.shape), kind))
            labels = torch.zeros(len(dataset), dtype=torch.int64)
        if (image.shape, image.dtype) != (images.shape[1:], images.dtype):
            raise ValueError(
                f"images must have one shape and dtype, got {tuple(images.shape[1:])} "
                f"{images.dtype} and item {number} of {tuple(image.shape)} {image.dtype}"
            )
        images[number] = image
        labels[number], labelled = label or 0, labelled and label is not None
        count += 1
    if count < len(dataset):
        raise ValueError(f"the data set says that it has {len(dataset)} items, but gave {count}")
    return ImageDataset(_as_bytes(images), labels if labelled else None, OWN, split, source)


def _image_and_label(number: int, item: Any) -> tuple[Tensor, int | None]:
    """The image (C, H, W) of an item, bytes or floating point, and its label."""
    if isinstance(item, Mapping):
        image, label = (next((n for n in names if n in item), None) for names in (IMAGES, LABELS))
        if image is None:
            raise ValueError(
                f"item {number} must have an entry {', '.join(IMAGES)}, got {', '.join(item)}"
            )
        item = (item[image], item.get(label))
    parts = item if isinstance(item, tuple | list) else (item,)
    values = _channels_first(_tensor(parts[0], f"item {number}")[None], f"item {number}")[0]
    whole = len(parts) > 1 and isinstance(parts[1], int | np.integer | Tensor)
    return values, int(parts[1]) if whole else None


def _tensor(values: Any, name: str) -> Tensor:
    """A tensor, an array or a PIL image as a tensor on the CPU, which shares memory if it can."""
    if isinstance(values, Tensor):
        return values.detach().cpu()
    array = np.ascontiguousarray(values)
    if array.dtype.kind not in "buif":
        raise ValueError(f"{name} must be an image, got a {type(values).__name__}")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The given NumPy array is not writable")  # only read here
        return torch.from_numpy(array)


def _channels_first(x: Tensor, name: str) -> Tensor:
    """Images (N, C, H, W) from that, from (N, H, W, C) or from (N, H, W)."""
    shape = tuple(x.shape)
    if x.ndim == 3:
        x = x[:, None]
    elif x.ndim == 4 and shape[1] not in (1, 3) and shape[3] in (1, 3):
        x = x.permute(0, 3, 1, 2)
    if x.ndim != 4 or x.shape[1] not in (1, 3):
        n, shape = ("N, ", shape) if name == "images" else ("", shape[1:])
        forms = f"({n}C, H, W), ({n}H, W, C) or ({n}H, W) with C = 1 or 3"
        raise ValueError(f"{name} must be {forms}, got {shape}")
    if x.dtype != torch.uint8 and not x.is_floating_point():
        raise ValueError(f"{name} must be uint8 or floating point, got {x.dtype}")
    return x.float() if x.is_floating_point() else x


def _as_bytes(x: Tensor) -> Tensor:
    """Images as bytes, from bytes or from floating point in [0, 1] or [-1, 1]."""
    if x.dtype == torch.uint8:
        return x
    low, high = (float(bound) for bound in x.aminmax()) if x.numel() else (0.0, 0.0)
    if low >= 0 and high <= 1:
        return (x * 255).round().to(torch.uint8)
    if -1 <= low <= -0.5 and high <= 1:
        return to_bytes(x)
    raise ValueError(
        f"images must be uint8 or floating point in [0, 1] or [-1, 1], got {low:g} to {high:g}: "
        "convert them to bytes"
    )


def split_own(dataset: OwnData) -> tuple[ImageDataset, ImageDataset]:
    """Training and held-out images of the argument of `dsmooth.train`: one in HELD_OUT."""
    if isinstance(dataset, Mapping):
        held_out = next((name for name in HELD_OUT_SPLITS if name in dataset), None)
        train = own_images(dataset)
        test = None if held_out is None else own_images(dataset, held_out)
    elif isinstance(dataset, tuple):
        train, test = own_images(dataset[0], "train"), own_images(dataset[1], "test")
    else:
        train, test = own_images(dataset), None
    if test is None:
        if len(train) < HELD_OUT:
            raise ValueError(
                f"the data set must hold {HELD_OUT} images or more, one of which is held out, got "
                f"{len(train)}; or give (training images, held-out images)"
            )
        last = torch.arange(len(train)) % HELD_OUT == HELD_OUT - 1
        train, test = (
            replace(
                train,
                images=train.images[chosen],
                labels=None if train.labels is None else train.labels[chosen],
                name=OWN,
                split=split,
            )
            for split, chosen in (("train", ~last), ("test", last))
        )
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
