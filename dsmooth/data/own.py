"""Images that a user has in Python, as bytes: arrays, and data sets of images."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence, Sized
from dataclasses import replace
from os import PathLike
from typing import Any, TypeGuard

import numpy as np
import torch
import torch.utils.data as loaders
from torch import Tensor

from ..config import OWN
from ..progress import LOG
from .dataset import ImageDataset, Transform, channels_first, warn_of_range
from .order import transformed
from .pillow import channels_of, obstacle, upright
from .reading import make_room

HELD_OUT = 10  # the last of ten images is held out of a data set without a test set
# Names that data sets of the Hugging Face Hub give to a column of images, to one of labels, and to
# the images that are held out.
IMAGES = ("image", "img", "images", "pixel_values")
LABELS = ("label", "labels", "fine_label")
HELD_OUT_SPLITS = ("validation", "valid", "val", "test")
# Items that are read again, which shows transforms that draw random numbers.
READ_AGAIN = 8


def own_images(dataset: Sized, split: str = "train", labels: Any = None) -> ImageDataset:
    """The images of a data set of one's own, as bytes; in a temporary file if memory is too small.

    dataset: an `ImageDataset`; an array or tensor (N, C, H, W), (N, H, W, C) or (N, H, W), or a
    tuple of it and its labels; or anything with a length, such as a `torch.utils.data.Dataset`, a
    data set of the Hugging Face Hub or a list. Its items are images, or tuples of an image and
    perhaps a label. An image is a PIL image or an array (C, H, W), (H, W, C) or (H, W). PIL images
    of any mode become grey or RGB, each by its mode. Arrays are whole numbers in 0 .. 255, or bool;
    `dsmooth.to_bytes` makes bytes of floating point. labels: whole numbers (N,), one-hot (N, K), or
    names, whose classes are in sorted order. Raises ValueError, with the item's number, for
    anything else and for images of several shapes.
    """
    if _has_labels(dataset):
        if labels is not None:
            raise ValueError("labels= was given beside (images, labels): leave one out")
        dataset, labels = dataset
    images = dataset if isinstance(dataset, ImageDataset) else _read(dataset, split)
    if not len(images):
        raise ValueError(f"the {split} data set must have a length and hold images, got none")
    warn_of_range(images.images, f"the {images.split} images")
    if labels is None:
        return images
    numbers, names = _classes(labels, len(images))
    return replace(images, labels=numbers, class_names=names)


def split_own(
    dataset: Sized, labels: Any = None, transform: Transform | None = None
) -> tuple[ImageDataset, ImageDataset]:
    """Training and held-out images from the arguments of `dsmooth.train`.

    Of images that come without held-out ones, one in HELD_OUT is held out. transform: of the
    training images, if it is not that of their `ImageDataset`.
    """
    parts = _parts(dataset)
    if len(parts) == 2:
        if labels is not None:
            raise ValueError(
                "labels= is for one set of images: give ((images, labels), (held-out images, "
                "labels))"
            )
        train, test = _with_same_classes(own_images(parts[0]), own_images(parts[1], "test"))
    else:
        whole = own_images(parts[0], "train", labels)
        if len(whole) < HELD_OUT:
            raise ValueError(
                f"the data set must hold {HELD_OUT} images or more, one of which is held out, got "
                f"{len(whole)}; or give (training images, held-out images)"
            )
        held_out = torch.arange(len(whole)) % HELD_OUT == HELD_OUT - 1
        train, test = whole.part(~held_out), replace(whole.part(held_out), split="test")
    if None not in (train.transform, transform):
        raise ValueError("transform= was given beside that of an ImageDataset: leave one out")
    transform = transform or train.transform
    train, test = replace(train, transform=transform), replace(test, transform=None)
    shape, made = train.images.shape[1:], ""
    if transform is not None:
        made = " that transform makes"
        shape = transformed(train.images[:1], transform, seed=0, first=0).shape[1:]
    if test.images.shape[1:] != shape:
        raise ValueError(
            f"held-out images must have the shape {tuple(shape)} of the training images{made}, got "
            f"{tuple(test.images.shape[1:])}; (training images, held-out images) names both"
        )
    if shape[1] % 4 or shape[2] % 4:
        raise ValueError(
            f"images must have a height and width that are multiples of 4, got {shape[1]} x "
            f"{shape[2]}: crop, pad or resize them"
        )
    return train, test


def _parts(dataset: Any) -> Sequence[Any]:
    """The training images of `dataset`, and the held-out ones if it has them."""
    if isinstance(dataset, Mapping):
        if "train" not in dataset:
            raise ValueError(f"the data set has no split 'train', but {', '.join(dataset)}")
        names = ["train", *(name for name in HELD_OUT_SPLITS if name in dataset)]
        return [dataset[name] for name in names[:2]]
    is_pair = isinstance(dataset, tuple) and not _has_labels(dataset)
    if isinstance(dataset, list):  # of random_split, or of images
        is_pair = any(isinstance(each, loaders.Dataset) for each in dataset)
    if not is_pair:
        return [dataset]
    if len(dataset) != 2:
        raise ValueError(
            f"a tuple or list of data sets must be (training images, held-out images), got "
            f"{len(dataset)}"
        )
    return dataset


def _has_labels(dataset: Any) -> TypeGuard[tuple[Any, Any]]:
    """Whether it is a tuple (images, labels): an array, and numbers, one-hot vectors or names."""
    if not isinstance(dataset, tuple) or len(dataset) != 2:
        return False
    images, labels = dataset
    if not isinstance(images, Tensor | np.ndarray) or not isinstance(
        labels, Tensor | np.ndarray | list | tuple
    ):
        return False
    first = labels[0] if len(labels) else None
    return isinstance(first, int | str) or getattr(first, "ndim", 2) < 2


def _with_same_classes(
    train: ImageDataset, test: ImageDataset
) -> tuple[ImageDataset, ImageDataset]:
    """Both data sets with the names of both, in the order of the first's."""
    if test.labels is None or not train.class_names or not test.class_names:
        return train, test
    names = tuple(dict.fromkeys((*train.class_names, *test.class_names)))
    number = torch.tensor([names.index(name) for name in test.class_names])
    test = replace(test, labels=number[test.labels], class_names=names)
    return replace(train, class_names=names), test


def _read(dataset: Any, split: str) -> ImageDataset:
    """The images of an array or of the items of a data set, and the items' labels."""
    names: tuple[str, ...] = ()
    labels = None
    if isinstance(dataset, Tensor | np.ndarray):
        source, images = "images given in Python", _pixels(dataset)
    elif isinstance(dataset, str | PathLike):
        raise ValueError(
            f'the data set must hold images, got the path {dataset}: data="folder" and data_dir '
            "of the settings read a folder"
        )
    elif isinstance(dataset, Mapping | loaders.DataLoader):
        hint = "one of its splits" if isinstance(dataset, Mapping) else "its .dataset, or a Subset"
        kind = type(dataset).__name__
        raise ValueError(f"the data set must hold images, got a {kind}: give {hint}")
    elif isinstance(dataset, loaders.IterableDataset) or not hasattr(dataset, "__len__"):
        raise ValueError(
            f"the data set must have a length and numbers of its items, got a "
            f"{type(dataset).__name__}: list(itertools.islice(dataset, 1000)) holds the first 1,000"
        )
    else:
        source = f"a {type(dataset).__name__} given in Python"
        images, labels, names = _read_items(dataset, source)
    if images.dtype != torch.uint8 and images.numel():
        if (high := int(images.max())) <= 1:
            raise ValueError(
                f"whole numbers up to {high} could be black and white, or nearly black: images of "
                "dtype bool are black and white"
            )
        images = images.byte()
    return ImageDataset(images, labels, OWN, split, source, class_names=names)


def _read_items(dataset: Any, source: str) -> tuple[Tensor, Tensor | None, tuple[str, ...]]:
    """The images of a data set with a length, their labels and the names of the classes."""
    images, labels = torch.empty(0, 1, 4, 4, dtype=torch.uint8), list[Any]()
    for number in range(len(dataset)):
        image, label = _image_and_label(number, dataset[number])
        if number == 0:
            kind = image.numpy().dtype.type
            images = torch.from_numpy(make_room(source, (len(dataset), *image.shape), kind))
        if (image.shape, image.dtype) != (images.shape[1:], images.dtype):
            same_size = image.shape[1:] == images.shape[2:] and image.dtype == images.dtype
            hint = ': image.convert("RGB") makes colour of grey Pillow images' * same_size
            raise ValueError(
                f"images must have one shape and dtype, got {tuple(images.shape[1:])} "
                f"{images.dtype} and item {number} of {tuple(image.shape)} {image.dtype}{hint}"
            )
        images[number] = image
        labels.append(label)
    for number in () if isinstance(dataset, list | tuple) else range(min(READ_AGAIN, len(dataset))):
        if not torch.equal(_image_and_label(number, dataset[number])[0], images[number]):
            LOG.warning(
                "item %d of the data set differs at a second read: images are read once, so "
                "its random transforms are frozen; transform= applies them at each visit",
                number,
            )
            break
    features = getattr(dataset, "features", None) or {}  # of the Hugging Face Hub
    column = next((features[name] for name in LABELS if name in features), None)
    if all(label is None for label in labels):
        return images, None, ()
    numbers, names = _classes(labels, len(labels))
    return images, numbers, names or tuple(getattr(column, "names", None) or ())


def _image_and_label(number: int, item: Any) -> tuple[Tensor, int | float | str | None]:
    """The image (C, H, W) of an item, as `_pixels` gives it, and its label."""
    if isinstance(item, Mapping):
        names = [next((n for n in names if n in item), None) for names in (IMAGES, LABELS)]
        if names[0] is None:
            raise ValueError(
                f"item {number} must have an entry {', '.join(IMAGES)}, got {', '.join(item)}"
            )
        item = (item[names[0]], item.get(names[1]))
    image, label, *_ = (*item, None, None) if isinstance(item, tuple | list) else (item, None)
    pixels = _pixels(image, number)[0]
    if isinstance(label, str):
        return pixels, label
    if not isinstance(label, int | float | np.ndarray | np.generic | Tensor):
        return pixels, None
    vector = torch.as_tensor(label).reshape(1, -1)
    if vector.shape[1] == 1:
        return pixels, vector.item()
    return pixels, int(vector.long().argmax()) if _are_one_hot(vector) else None


def _are_one_hot(vectors: Tensor) -> bool:
    """Whether each of the vectors (N, K) has a single one among zeros."""
    return bool(((vectors == 0) | (vectors == 1)).all() and (vectors.sum(1) == 1).all())


def _classes(labels: Any, count: int) -> tuple[Tensor, tuple[str, ...]]:
    """Numbers (N,) int64 of labels in any form, and the names of the classes if they are names."""
    if len(labels) == count and all(isinstance(label, str) for label in labels):
        names = tuple(sorted(map(str, set(labels))))
        number = {name: i for i, name in enumerate(names)}
        return torch.tensor([number[label] for label in labels]), names
    array = labels if isinstance(labels, Tensor) else np.asarray(labels)
    if isinstance(array, Tensor) or array.dtype.kind in "buif":
        numbers = torch.as_tensor(array).detach().cpu()
        if numbers.ndim == 2 and numbers.shape[1] == 1:
            numbers = numbers[:, 0]
        elif numbers.ndim == 2 and _are_one_hot(numbers):
            numbers = numbers.long().argmax(1)
        if numbers.shape == (count,) and bool((numbers == numbers.long()).all()):
            return numbers.long(), ()
    kinds = {type(label): repr(label) for label in labels}
    raise ValueError(
        f"labels must be whole numbers, one-hot vectors or names of {count} images, got "
        f"{len(labels)} such as {' and '.join(kinds.values())}"
    )


def _pixels(values: Any, number: int | None = None) -> Tensor:
    """Images (N, C, H, W): bytes, or int16 of other whole numbers in 0 .. 255.

    values: an array or tensor in one of three layouts. With a `number` it is one item without N, or
    a PIL image.
    """
    name, n = ("images", "N, ") if number is None else (f"item {number}", "")
    if hasattr(values, "getbands"):  # a PIL image
        if (why := obstacle(values, in_memory=True)) is not None:
            raise ValueError(f"{name} {why}")
        values = np.asarray(upright(values, channels_of(values)))
    x = values
    if not isinstance(values, Tensor):
        array = np.ascontiguousarray(values)
        if array.dtype.kind not in "buif":
            raise ValueError(f"{name} must be an image, got a {type(values).__name__}")
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "The given NumPy array is not writable")
            x = torch.from_numpy(array)
    images = channels_first(x.detach().cpu() if number is None else x.detach().cpu()[None])
    if images is None:
        forms = f"({n}C, H, W), ({n}H, W, C) or ({n}H, W) with C = 1 or 3"
        raise ValueError(f"{name} must be {forms}, got {tuple(x.shape)}")
    if x.dtype == torch.bool:
        return images.byte() * 255
    if x.dtype == torch.uint8 or not x.numel():
        return images.byte()
    low, high = (end.item() for end in (x if x.dtype.is_signed else x.long()).aminmax())
    if x.is_floating_point():
        raise ValueError(
            f"{name} must be bytes, got {x.dtype} of {low:g} to {high:g}: dsmooth.to_bytes(x) has "
            "those of a tensor in [-1, 1], dsmooth.to_bytes(2 * x - 1) of one in [0, 1]; or leave "
            "out ToTensor and Normalize"
        )
    if low < 0 or high > 255:
        raise ValueError(f"{name} must be whole numbers in 0 .. 255, got {low} to {high}")
    return images.short()
