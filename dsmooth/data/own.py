"""Images that a user has in Python, as bytes: arrays, and data sets of images."""

from __future__ import annotations

import os
import reprlib
from collections.abc import Iterable, Mapping
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
from .dataset import ImageDataset, channels_first, other_range, pixels_of, stacked, to_bytes
from .folder import split_names, upright
from .order import held_out

# Names that data sets give to a column of images, should several be images, and to one of labels.
IMAGES = ("image", "img", "images", "pixel_values")
LABELS = ("label", "labels", "fine_label")


def own_images(dataset: Any, split: str = "train", labels: Any = None) -> ImageDataset:
    """The images of a data set of one's own, as bytes.

    dataset: an `ImageDataset`; an array or tensor (N, C, H, W), (N, H, W, C) or (N, H, W); anything
    to iterate, such as a `torch.utils.data.Dataset`, a data set of the Hugging Face Hub, a list or
    a generator; a `DataLoader`, whose data set is read in its order; or a mapping of splits. Items
    are images, tuples of an image and perhaps a label, or dictionaries of these. An image is a PIL
    image, which becomes grey or RGB by its mode, or an array (C, H, W), (H, W, C) or (H, W). Arrays
    are bytes, or floating point in [-1, 1]. labels: of an array, and in place of an item's: whole
    numbers (N,), or names. Numbers among the items have the names that the data set gives them, as
    `classes` (torchvision) or `features` (Hugging Face). Each item is read once. Raises ValueError,
    once for all items that are not images or have no such label, and for images of several shapes;
    TypeError for a data set of other things.
    """
    names: tuple[str, ...] = ()
    if isinstance(dataset, Mapping):
        dataset = _splits(dataset)[-1 if split == "test" else 0]
    if isinstance(dataset, ImageDataset):
        images = dataset
    else:
        is_array = isinstance(dataset, Tensor) or (
            isinstance(dataset, np.ndarray) and (dataset.dtype != object or dataset.ndim > 1)
        )
        if is_array:
            kind, pixels = "images", channels_first(_pixels(dataset, "images"), "images")
        else:
            kind, dataset = f"a {type(dataset).__name__}", _in_order(dataset)
            pixels, item_labels = _read_items(dataset, labels is None)
            if labels is None:  # the data set's names are of its own labels
                labels, names = item_labels, _names_of(dataset)
        images = ImageDataset(pixels, None, OWN, split, f"{kind} given in Python")
        if not pixels.numel():
            shape = tuple(pixels.shape)
            raise ValueError(
                f"the {split} data set must hold images with pixels, got {shape}; a generator is "
                "empty when it was read before"
            )
        if words := other_range(pixels, f"the {split} images"):
            raise ValueError(words)
    if labels is None:
        return images
    numbers, names = _classes(labels, len(images), names)
    return replace(images, labels=numbers, class_names=names)


def split_own(dataset: Any, labels: Any = None) -> tuple[ImageDataset, ImageDataset]:
    """Training and held-out images from the arguments of `dsmooth.train`.

    dataset: as in `own_images`, of which `held_out` chooses by their places; or a tuple (training
    images, held-out images) or a mapping of both, each with its own labels.
    """
    if isinstance(dataset, Mapping):
        dataset = _splits(dataset)
        dataset = dataset if len(dataset) > 1 else dataset[0]
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


def _splits(dataset: Mapping[Any, Any]) -> tuple[Any, ...]:
    """The training images of a mapping, and the held-out ones if it has some."""
    train, test = split_names({str(name).lower(): part for name, part in dataset.items()})
    if train is None:
        raise ValueError(
            "a mapping must have the split train, and perhaps test, got "
            f"{', '.join(map(str, dataset))}: pass an array of images, and labels="
        )
    return (train,) if test is None else (train, test)


def _in_order(dataset: Any) -> Any:
    """A data set; that of a loader, which may shuffle, with the images that the loader takes."""
    if not isinstance(dataset, loaders.DataLoader):
        return dataset
    if isinstance(dataset.dataset, loaders.IterableDataset):
        return dataset.dataset
    return loaders.Subset(dataset.dataset, sorted(dataset.sampler))


def _read_items(dataset: Any, with_labels: bool) -> tuple[Tensor, list[int | str | None] | None]:
    """The images of a data set, and the labels of its items if any has one."""
    is_indexed = hasattr(dataset, "__getitem__") and not hasattr(dataset, "__iter__")
    if isinstance(dataset, str | os.PathLike) or not (is_indexed or isinstance(dataset, Iterable)):
        raise TypeError(
            f'dataset= must be images, got {dataset!r}: of a folder set data="folder", data_dir='
        )
    columns, labels = list[Any](), list[int | str | None]()

    def read(numbered: tuple[int, Any]) -> Tensor:
        number, item = numbered
        name, item = f"item {number}", dataset[item] if is_indexed else item
        if isinstance(item, Mapping):
            columns[:] = columns or _columns(item)
            item = tuple(item.get(column) for column in columns)
        image, label, *_ = (*item, None, None) if isinstance(item, tuple | list) else (item, None)
        if with_labels:
            labels.append(_class_of(label, name))
        return channels_first(_pixels(image, name)[None], name)[0]

    items = enumerate(range(len(dataset)) if is_indexed else dataset)
    pixels = stacked(read, items, "item {}".format)
    return pixels, labels if any(label is not None for label in labels) else None


def _columns(item: Mapping[Any, Any]) -> list[Any]:
    """The names of the columns of images and of labels in a row."""
    images = [
        name
        for name, value in item.items()
        if hasattr(value, "getbands") or getattr(value, "ndim", 0) >= 2
    ]
    image = next((name for name in IMAGES if name in images), images[0] if images else None)
    if image is None or (len(images) > 1 and image not in IMAGES):
        raise TypeError(
            f"dataset= must have one column of images, got {', '.join(map(str, images)) or 'none'} "
            f"of the columns {', '.join(map(str, item))}: pass "
            "dataset=((row[IMAGE], row[LABEL]) for row in ..)"
        )
    return [image, next((name for name in LABELS if name in item), None)]


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


def _class_of(label: Any, name: str) -> int | str | None:
    """A label as a number or a name, or None. Raises ValueError for anything else."""
    value = label.tolist() if hasattr(label, "tolist") else label
    value = value[0] if isinstance(value, list) and len(value) == 1 else value
    if isinstance(value, bool) or not isinstance(value, int | str | None):
        raise ValueError(
            f"{name} has the label {reprlib.repr(value)}, which must be a whole number from 0 or a "
            "name: take label.argmax() of a one-hot one, or pass the images only"
        )
    return value


def _classes(labels: Any, count: int, names: tuple[str, ...]) -> tuple[Tensor, tuple[str, ...]]:
    """Labels (N,) int64 and the names of their classes, of whole numbers or of names.

    names: of the numbers. Numbers without names are named by themselves.
    """
    given = [] if isinstance(labels, Mapping) else [*labels]
    known = [_class_of(label, f"item {number}") for number, label in enumerate(given)]
    if None in known:
        raise ValueError(f"item {known.index(None)} has no label, but other items have one")
    values = np.array(known)
    kind, is_whole = values.dtype.kind, values.dtype.kind == "i" and values.min() >= 0
    if values.shape != (count,) or not (is_whole or kind == "U"):
        raise ValueError(
            f"labels must be whole numbers from 0, or names, of {count} images, got {len(values)} "
            f"such as {', '.join(sorted({repr(label) for label in known})[:2])}"
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
    if not isinstance(values, Tensor | np.ndarray):
        raise ValueError(f"{name} must be an image, got a {type(values).__name__}")
    x = pixels_of(values, name)
    if x.dtype == torch.uint8:
        return x
    low, high = map(float, x.aminmax()) if x.numel() else (0.0, 0.0)
    if not (low >= -1.001 and high <= 1.001):
        raise ValueError(
            f"{name} must be bytes or lie in [-1, 1], got {values.dtype} from {low:g} to {high:g}"
        )
    return to_bytes(x)
