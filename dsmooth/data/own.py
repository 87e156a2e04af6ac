"""Images that a user has in Python, as bytes: arrays, and data sets of images."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils import data as loaders

from ..config import OWN
from ..pixels import are_sides
from ..progress import LOG
from .dataset import ImageDataset, Transform, channels_first, warn_of_range
from .folder import obstacle, upright
from .order import epoch_order, transformed
from .reading import check_memory

HELD_OUT = 10  # one in ten images is held out of a data set without a test set
# Names that data sets of the Hugging Face Hub give to a column of images, and to one of labels.
IMAGES = ("image", "img", "images", "pixel_values")
LABELS = ("label", "labels", "fine_label")
# Names of the images that are held out, among the splits of a data set of the Hub.
HELD_OUT_SPLITS = ("validation", "valid", "val", "test")
READ_AGAIN = 8  # items that are read twice, which shows transforms that draw random numbers


def own_images(
    dataset: Any, split: str = "train", labels: Any = None, transform: Transform | None = None
) -> ImageDataset:
    """The images of a data set of one's own, as bytes.

    dataset: an `ImageDataset`; an array or tensor (N, C, H, W), (N, H, W, C) or (N, H, W), or a
    tuple of it and its labels; or anything with a length, such as a `torch.utils.data.Dataset`, a
    data set of the Hugging Face Hub or a list. Its items are images, or tuples of an image and
    perhaps a label. An image is a PIL image or an array (C, H, W), (H, W, C) or (H, W). PIL images
    of any mode become grey or RGB, each by its mode. Arrays are whole numbers in 0 .. 255, or bool;
    `dsmooth.to_bytes` makes bytes of floating point. labels: whole numbers (N,), one-hot (N, K), or
    names, whose classes are in sorted order. Numbers among the items have the names that the data
    set gives them, as `classes` (torchvision) or `features` (Hugging Face). transform: a function
    from an image, uint8 (C, H, W), to another, applied at each visit in training; its random
    numbers, from torch, numpy or random, depend only on the seed and the visit. Held-out images are
    not transformed and must have the size that it makes. Raises ValueError, with the item's number,
    for anything else and for images of several shapes.
    """
    if transform is not None and not callable(transform):
        raise TypeError(f"transform must be a function, got a {type(transform).__name__}")
    if _has_labels(dataset):
        if labels is not None:
            raise ValueError("labels= and (images, labels) were both given: leave one out")
        dataset, labels = dataset
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
    if not len(images):
        raise ValueError(f"the {split} data set must have a length and hold images, got none")
    if not images.images.numel():
        height, width = images.image_size
        raise ValueError(f"the {split} images must have pixels, got {height} x {width}")
    if images is not dataset:
        warn_of_range(images.images, f"the {images.split} images")
    if None not in (transform, images.transform):
        raise ValueError(
            "transform= and the transform of an ImageDataset were both given: leave one out"
        )
    images = replace(images, transform=transform or images.transform)
    if labels is None:
        return images
    numbers, names = _classes(labels, len(images), names)
    return replace(images, labels=numbers, class_names=names)


def split_own(
    dataset: Any, labels: Any = None, transform: Transform | None = None
) -> tuple[ImageDataset, ImageDataset]:
    """Training and held-out images from the arguments of `dsmooth.train`.

    Of images that come without held-out ones, one in HELD_OUT is held out, as `_is_held_out` says.
    """
    parts = [dataset]
    if isinstance(dataset, Mapping):
        names = [name for name in ("train", *HELD_OUT_SPLITS) if name in dataset]
        if "train" not in names:
            raise ValueError(f"the data set has no split 'train', but {', '.join(dataset)}")
        parts = [dataset[name] for name in names[:2]]
    elif isinstance(dataset, tuple) and not _has_labels(dataset):
        parts = [*dataset]
    elif isinstance(dataset, list) and isinstance(next(iter(dataset), None), loaders.Dataset):
        parts = dataset  # of random_split
    if len(parts) > 2 or (len(parts) == 2 and labels is not None):
        raise ValueError(
            "data sets must be (training images, held-out images), with labels ((images, labels), "
            f"(images, labels)), got {len(parts)}{' and labels=' * (labels is not None)}"
        )
    if len(parts) == 2:
        train, test = own_images(parts[0], transform=transform), own_images(parts[1], "test")
        if test.labels is not None and train.class_names and test.class_names:
            class_names = tuple(dict.fromkeys((*train.class_names, *test.class_names)))
            train = replace(train, class_names=class_names)
            test = replace(test, labels=test.labels_of(class_names), class_names=class_names)
    else:
        whole = own_images(parts[0], "train", labels, transform)
        if len(whole) < HELD_OUT:
            raise ValueError(
                f"the data set must hold {HELD_OUT} images or more, one of which is held out, got "
                f"{len(whole)}; or give (training images, held-out images)"
            )
        held_out = _is_held_out(whole)
        train, test = whole.part(~held_out), replace(whole.part(held_out), split="test")
    transform, test = train.transform, replace(test, transform=None)
    shape, made = train.images.shape[1:], ""
    if transform is not None:
        made = " that transform makes"
        shape = transformed(train.images[:1], transform, seed=0, first=0).shape[1:]
    if test.images.shape[1:] != shape:
        raise ValueError(
            f"held-out images must have the shape {tuple(shape)} of the training images{made}, got "
            f"{tuple(test.images.shape[1:])}; (training images, held-out images) names both"
        )
    if not are_sides(*shape[1:]):
        raise ValueError(
            f"images must have a height and width that are multiples of 4, got {shape[1]} x "
            f"{shape[2]}: crop, pad or resize them"
        )
    return train, test


def _is_held_out(dataset: ImageDataset) -> Tensor:
    """Whether each image is held out: (N,) bool, a function of N and the labels.

    The choice is pseudo-random, with the same share of each class as nearly as possible. A class
    keeps a training image, unless most classes have only one image.
    """
    n = len(dataset)
    order = epoch_order(n, 0, 0)
    labels = torch.zeros(n).long() if dataset.labels is None else dataset.labels[order]
    _, numbers, counts = labels.unique(return_inverse=True, return_counts=True)
    by_class = numbers.argsort(stable=True)
    rank = torch.empty(n, dtype=torch.float64)  # among the images of its class
    rank[by_class] = (torch.arange(n) - (counts.cumsum(0) - counts)[numbers[by_class]]).double()
    quantile = (rank + 0.5) / counts[numbers]
    highest = quantile.argsort(stable=True, descending=True)[: n // HELD_OUT]
    return torch.zeros(n, dtype=torch.bool).index_fill(0, order[highest], True)


def _has_labels(dataset: Any) -> bool:
    """Whether it is a tuple of an array of images and their labels."""
    if not isinstance(dataset, tuple) or len(dataset) != 2:
        return False
    images, labels = dataset
    is_sequence = isinstance(labels, Tensor | np.ndarray | list | tuple)
    first = labels[0] if is_sequence and len(labels) else None
    are_labels = isinstance(first, int | float | str) or getattr(first, "ndim", 2) < 2
    return isinstance(images, Tensor | np.ndarray) and are_labels


def _read_items(dataset: Any, split: str) -> tuple[ImageDataset, list[object] | None]:
    """The images of a data set with a length, and the labels of its items if one has any."""
    kind = type(dataset).__name__
    unread = isinstance(dataset, Mapping | loaders.IterableDataset)
    if unread or not (hasattr(dataset, "__len__") and hasattr(dataset, "__getitem__")):
        raise ValueError(
            f"the data set must have a length and numbers of its items, got a {kind}: give the "
            ".dataset of a DataLoader, (training images, held-out images) of a dictionary, or "
            "list(itertools.islice(dataset, 1000)) of a stream"
        )
    images, labels = torch.empty(0, 1, 4, 4, dtype=torch.uint8), list[object]()
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
        labels.append(label)
    for number in () if isinstance(dataset, list | tuple) else range(min(READ_AGAIN, len(dataset))):
        if not torch.equal(_pixels_and_label(dataset[number], "item")[0], images[number]):
            LOG.warning(
                "item %d of the data set differs at a second read: images are read once, so its "
                "random transforms are frozen; own_images(transform=) applies them",
                number,
            )
            break
    source, without_labels = f"a {kind} given in Python", all(label is None for label in labels)
    whole = ImageDataset(images, None, OWN, split, source)
    return whole, None if without_labels else labels


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


def _pixels_and_label(item: Any, name: str) -> tuple[Tensor, object]:
    """The bytes (C, H, W) and the label of an item; None for a label that names no class."""
    if isinstance(item, Mapping):
        columns = [next((n for n in names if n in item), None) for names in (IMAGES, LABELS)]
        if columns[0] is None:
            raise ValueError(
                f"{name} must have an entry {', '.join(IMAGES)}, got {', '.join(item)}"
            )
        item = tuple(item.get(column) for column in columns)
    image, label, *_ = (*item, None, None) if isinstance(item, tuple | list) else (item, None)
    if not isinstance(_number_of(label), int | float | str):
        label = None
    return channels_first(_pixels(image, name)[None], name)[0], label


def _number_of(label: Any) -> object:
    """The number of a class from an array of it or from a one-hot vector; else the label itself."""
    value = label.tolist() if hasattr(label, "tolist") else label
    if isinstance(value, list) and len(value) == 1:
        return value[0]
    is_one_hot = isinstance(value, list) and (value.count(1), value.count(0)) == (1, len(value) - 1)
    return value.index(1) if is_one_hot else value


def _classes(
    labels: Any, count: int, names: tuple[str, ...] = ()
) -> tuple[Tensor, tuple[str, ...]]:
    """Numbers (N,) int64 of labels in any form, and the names of their classes.

    names: of the numbers, if the labels are numbers that have names.
    """
    values = [_number_of(label) for label in labels]
    if len(values) == count and all(isinstance(value, str) for value in values):
        names = tuple(sorted(set(map(str, values))))
        return torch.tensor([names.index(str(value)) for value in values]), names
    numbers = [value for value in values if isinstance(value, int | float)]
    wrong = [x for x in numbers if not (0 <= x < 2**63 and float(x).is_integer())]
    if len(numbers) == len(values) == count and not wrong:
        whole = torch.tensor([int(number) for number in numbers])
        if names and int(whole.max()) < len(names):
            return whole, names
        found, places = whole.unique(return_inverse=True)
        return places, tuple(map(str, found.tolist()))
    kinds = {type(value): repr(value) for value in [*values, *wrong]}
    raise ValueError(
        f"labels must be whole numbers, one-hot vectors or names of {count} images, got "
        f"{len(values)} such as {' and '.join(kinds.values())}"
    )


def _pixels(values: Any, name: str) -> Tensor:
    """Bytes of an array or PIL image, in its shape; `name` is for errors."""
    if hasattr(values, "getbands"):  # a PIL image
        if (found := obstacle(values)) is not None:
            advice = f"; this converts it: {found.conversion}" * bool(found.conversion)
            raise ValueError(f"{name} {found.reason}{advice}")
        values = np.asarray(upright(values))
    if not isinstance(values, Tensor | np.ndarray):
        raise ValueError(f"{name} must be an image, got a {type(values).__name__}")
    # The name of numpy's type does not depend on the order of its bytes.
    kind = getattr(values.dtype, "name", None) or str(values.dtype).removeprefix("torch.")
    if not re.fullmatch(r"bool|u?int\d+", kind):
        raise ValueError(
            f"{name} must be bytes, got {kind}: dsmooth.to_bytes(x) makes them of a tensor in "
            "[-1, 1], dsmooth.to_bytes(2 * x - 1) of one in [0, 1]; or leave out ToTensor and "
            "Normalize"
        )
    array = values.numpy(force=True) if isinstance(values, Tensor) else values
    if kind == "bool":
        array = array * np.uint8(255)
    elif array.size and not 0 <= array.min() <= array.max() <= 255:
        raise ValueError(
            f"{name} must be whole numbers in 0 .. 255, got {array.min()} to {array.max()}"
        )
    # torch takes no negative strides, and writable arrays.
    return torch.from_numpy(np.require(array, np.uint8, requirements=["C", "W"]))
