"""Images that a user has in Python, as bytes: arrays, and data sets of images."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils import data as loaders

from ..config import OWN
from ..philox import Stream, image_words
from ..pixels import are_sides
from .dataset import ImageDataset, channels_first, other_range, to_bytes
from .folder import obstacle, upright
from .order import held_out
from .reading import check_memory

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
    elif isinstance(dataset, Tensor | np.ndarray):
        pixels = channels_first(_pixels(dataset, "images"), "images")
        images = ImageDataset(pixels, None, OWN, split, "images given in Python")
    else:
        images, item_labels = _read_items(dataset, split)
        if labels is None:  # the data set's names are of its own labels
            labels, names = item_labels, _names_of(dataset)
    if not images.images.numel():
        shape = tuple(images.images.shape)
        raise ValueError(f"the {split} data set must hold images with pixels, got {shape}")
    if images is not dataset and (words := other_range(images.images, f"the {split} images")):
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
            test = replace(test, labels=test.labels_of(names), class_names=names)
    else:
        whole = own_images(dataset, "train", labels)
        if len(whole) < 2:
            raise ValueError(f"the data set must hold 2 images or more, got {len(whole)}")
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


def _read_items(dataset: Any, split: str) -> tuple[ImageDataset, list[int | str] | None]:
    """The images of a data set with a length, and the labels of its items if they have some."""
    kind = type(dataset).__name__
    images, labels = torch.empty(0, 1, 4, 4, dtype=torch.uint8), list[int | str]()
    for number in range(len(dataset)):
        pixels, label = _pixels_and_label(dataset[number], f"item {number}")
        if number == 0:
            check_memory(f"a {kind}", len(dataset) * pixels.numel())
            images = torch.empty((len(dataset), *pixels.shape), dtype=torch.uint8)
        if pixels.shape != images.shape[1:]:
            raise ValueError(
                f"images must have one shape, got {tuple(images.shape[1:])} and item {number} of "
                f'{tuple(pixels.shape)}: image.convert("RGB") makes colour of grey Pillow images'
            )
        images[number] = pixels
        labels += [] if label is None else [label]
    return ImageDataset(images, None, OWN, split, f"a {kind} given in Python"), labels or None


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


def _pixels_and_label(item: Any, name: str) -> tuple[Tensor, int | str | None]:
    """The bytes (C, H, W) and the label of an item; None for a label that names no class."""
    if isinstance(item, Mapping):
        columns = (next((n for n in names if n in item), None) for names in (IMAGES, LABELS))
        item = tuple(item.get(column) for column in columns)
    image, label, *_ = (*item, None, None) if isinstance(item, tuple | list) else (item, None)
    return channels_first(_pixels(image, name)[None], name)[0], _class_of(label)


def _class_of(label: Any) -> int | str | None:
    """A label as a number or a name; None for anything else, such as boxes."""
    value = label.tolist() if hasattr(label, "tolist") else label
    return value if isinstance(value, int | str) and not isinstance(value, bool) else None


def _classes(
    labels: Any, count: int, names: tuple[str, ...] = ()
) -> tuple[Tensor, tuple[str, ...]]:
    """Labels (N,) int64 and the names of their classes, of whole numbers or of names.

    names: of the numbers. Numbers without names are named by themselves.
    """
    values = [] if isinstance(labels, Mapping) else [_class_of(label) for label in labels]
    kinds = {type(value) for value in values}
    is_known = kinds in ({str}, {int}) and all(not isinstance(v, int) or v >= 0 for v in values)
    if len(values) != count or not is_known:
        raise ValueError(
            f"labels must be whole numbers from 0, or names, of {count} images, got {len(values)} "
            f"such as {', '.join(sorted({repr(label) for label in labels})[:2])}"
        )
    if names and kinds == {int} and max(v for v in values if isinstance(v, int)) < len(names):
        return torch.tensor(values), names
    found: list[Any] = sorted(set(values))
    numbers = {value: number for number, value in enumerate(found)}
    return torch.tensor([numbers[value] for value in values]), tuple(map(str, found))


def _pixels(values: Any, name: str) -> Tensor:
    """Bytes of an array or PIL image, in its shape; `name` is for errors."""
    if hasattr(values, "getbands"):  # a PIL image
        if (reason := obstacle(values)) is not None:
            raise ValueError(f"{name} {reason}")
        values = np.asarray(upright(values))
    if not isinstance(values, Tensor | np.ndarray):
        raise ValueError(f"{name} must be an image, got a {type(values).__name__}")
    if isinstance(values, Tensor):
        values = (values.float() if values.is_floating_point() else values).numpy(force=True)
    array: NDArray[Any] = values
    if array.dtype == np.uint8:
        # torch takes no negative strides, and writable arrays.
        return torch.from_numpy(np.require(array, requirements=["C", "W"]))
    if array.dtype.kind != "f":
        raise ValueError(f"{name} must be bytes or lie in [-1, 1], got {array.dtype}")
    x = torch.from_numpy(array.astype(np.float32))
    low, high = map(float, x.aminmax()) if x.numel() else (0.0, 0.0)
    if not (low >= -1.001 and high <= 1.001):
        raise ValueError(
            f"{name} must be bytes or lie in [-1, 1], got {array.dtype} from {low:g} to {high:g}"
        )
    return to_bytes(x)
