"""Images that a user has in Python, as bytes: arrays, and data sets of images."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils import data as loaders

from ..config import OWN, Classes
from ..fields import check_number
from ..files import guarded
from ..philox import Stream, image_words
from ..pixels import are_sides
from .dataset import ImageDataset, channels_first, other_range, stacked, to_bytes
from .folder import upright
from .order import held_out

# Names that data sets of the Hugging Face Hub give to a column of images, and to one of labels.
IMAGES = ("image", "img", "images", "pixel_values")
LABELS = ("label", "labels", "fine_label")


def own_images(dataset: Any, split: str = "train", labels: Any = None) -> ImageDataset:
    """The images of a data set of one's own, as bytes.

    dataset: an `ImageDataset`; an array or tensor (N, C, H, W), (N, H, W, C) or (N, H, W); or
    anything with a length, such as a `torch.utils.data.Dataset`, a data set of the Hugging Face Hub
    or a list. Its items are images, tuples of an image and perhaps a label, or dictionaries of
    these. An image is a PIL image, which becomes grey or RGB by its mode, or an array (C, H, W),
    (H, W, C) or (H, W). Arrays are bytes, or floating point in [-1, 1]. labels: of an array, and in
    place of an item's: whole numbers (N,), or names. Numbers among the items have the names that
    the data set gives them, as `classes` (torchvision) or `features` (Hugging Face). Each item is
    read once. Raises ValueError, with the item's number, for items that are not images, and for
    images of several shapes.
    """
    names: tuple[str, ...] = ()
    if isinstance(dataset, ImageDataset):
        images = dataset
    else:
        if isinstance(dataset, Tensor | np.ndarray):
            kind, pixels = "images", channels_first(_pixels(dataset, "images"), "images")
        else:
            kind, (pixels, item_labels) = f"a {type(dataset).__name__}", _read_items(dataset)
            if labels is None:  # the data set's names are of its own labels
                labels, names = item_labels, _names_of(dataset)
        images = ImageDataset(pixels, None, OWN, split, f"{kind} given in Python")
        if not pixels.numel():
            shape = tuple(pixels.shape)
            raise ValueError(f"the {split} data set must hold images with pixels, got {shape}")
        if words := other_range(pixels, f"the {split} images"):
            raise ValueError(words)
    if labels is None:
        return images
    numbers, names = _classes(labels, len(images), names)
    return replace(images, labels=numbers, class_names=names)


def split_own(dataset: Any, labels: Any = None) -> tuple[ImageDataset, ImageDataset]:
    """Training and held-out images from the arguments of `dsmooth.train`.

    dataset: as in `own_images`, of which `held_out` chooses by their places; or a tuple (training
    images, held-out images), each with its own labels.
    """
    if isinstance(dataset, tuple):
        if len(dataset) != 2 or labels is not None:
            raise ValueError(
                "a tuple must be (training images, held-out images), without labels=, got "
                f"{len(dataset)}: dsmooth.data.own_images(images, labels=labels) has its own"
            )
        train, test = own_images(dataset[0]), own_images(dataset[1], "test")
        if train.labels is not None and test.labels is not None:
            names = tuple(dict.fromkeys((*train.class_names, *test.class_names)))
            train = replace(train, class_names=names)
            test = replace(test, labels=test.labels_for(Classes(names)), class_names=names)
    else:
        whole = own_images(dataset, "train", labels)
        check_number("images", len(whole), 2)
        classes = [None] * len(whole) if whole.labels is None else whole.labels.tolist()
        words = image_words(len(whole), 1, seed=0, first_index=0, stream=Stream.HELD_OUT)[:, 0]
        keys = [high << 32 | low for low, high, *_ in words.tolist()]
        chosen = torch.tensor(held_out(keys, classes))
        train, test = whole.part(~chosen), replace(whole.part(chosen), split="test")
    shape = train.images.shape[1:]
    if test.images.shape[1:] != shape:
        raise ValueError(
            f"held-out images must have the shape {tuple(shape)} of the training images, got "
            f"{tuple(test.images.shape[1:])}"
        )
    if not are_sides(*shape[1:]):
        raise ValueError(
            f"images must have a height and width that are multiples of 4, got {shape[1]} x "
            f"{shape[2]}: crop, pad or resize them"
        )
    return train, test


def _read_items(dataset: Any) -> tuple[Tensor, list[int | str] | None]:
    """The images of a data set with a length, and the labels of its items if they have some."""
    labels: list[int | str] = []

    def rows() -> Iterator[Tensor]:
        for number in range(len(dataset)):
            item, name = dataset[number], f"item {number}"
            if isinstance(item, Mapping):
                columns = (next((n for n in ns if n in item), None) for ns in (IMAGES, LABELS))
                item = tuple(item.get(column) for column in columns)
            image, label, *_ = (
                (*item, None, None) if isinstance(item, tuple | list) else (item, None)
            )
            if (known := _class_of(label)) is not None:
                labels.append(known)
            yield channels_first(_pixels(image, name)[None], name)[0]

    return stacked(rows(), len(dataset), "item {}".format), labels or None


def _names_of(dataset: Any) -> tuple[str, ...]:
    """The names that a data set gives to its numbers of classes; () if it gives none.

    The names are of the numbers before a `target_transform`.
    """
    while isinstance(dataset, loaders.Subset):
        dataset = dataset.dataset
    if getattr(dataset, "target_transform", None) is not None:
        return ()
    features = getattr(dataset, "features", None) or {}  # of the Hugging Face Hub
    column = next((features[name] for name in LABELS if name in features), None)
    names: Any = getattr(column, "names", None) or getattr(dataset, "classes", ())  # of torchvision
    is_list = isinstance(names, list | tuple) and all(isinstance(name, str) for name in names)
    return tuple(names) if is_list else ()


def _class_of(label: Any) -> int | str | None:
    """A label as a number or a name; None for anything else, such as boxes."""
    value = label.tolist() if hasattr(label, "tolist") else label
    return value if isinstance(value, int | str) and not isinstance(value, bool) else None


def _classes(labels: Any, count: int, names: tuple[str, ...]) -> tuple[Tensor, tuple[str, ...]]:
    """Labels (N,) int64 and the names of their classes, of whole numbers or of names.

    names: of the numbers. Numbers without names are named by themselves.
    """
    values = np.array([] if isinstance(labels, Mapping) else [*map(_class_of, labels)])
    kind, is_whole = values.dtype.kind, values.dtype.kind == "i" and values.min() >= 0
    if values.shape != (count,) or not (is_whole or kind == "U"):
        raise ValueError(
            f"labels must be whole numbers from 0, or names, of {count} images, got {len(values)} "
            f"such as {', '.join(sorted({repr(label) for label in labels})[:2])}"
        )
    if is_whole and values.max() < len(names):
        return torch.from_numpy(values), names
    found, numbers = np.unique(values, return_inverse=True)
    return torch.from_numpy(numbers), tuple(map(str, found.tolist()))


def _pixels(values: Any, name: str) -> Tensor:
    """Bytes of an array or PIL image, in its shape; `name` is for errors."""
    if hasattr(values, "getbands"):  # a PIL image
        with guarded(name, "an image"):
            values = np.array(upright(values))
    if isinstance(values, np.ndarray):  # torch takes no negative strides, and writable arrays
        values = torch.from_numpy(np.require(values, requirements=["C", "W"]))
    if not isinstance(values, Tensor):
        raise ValueError(f"{name} must be an image, got a {type(values).__name__}")
    x = values.detach().cpu()
    if x.dtype == torch.uint8:
        return x
    low, high = map(float, x.float().aminmax()) if x.numel() else (0.0, 0.0)
    if not x.is_floating_point() or not (low >= -1.001 and high <= 1.001):
        raise ValueError(
            f"{name} must be bytes or lie in [-1, 1], got {x.dtype} from {low:g} to {high:g}"
        )
    return to_bytes(x.float())
