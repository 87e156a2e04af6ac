"""Images that a user has in Python, as bytes: arrays, data sets, DataLoaders."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sized
from contextlib import suppress
from dataclasses import replace
from itertools import islice
from os import PathLike
from typing import Any, NamedTuple, NoReturn

import numpy as np
import torch
import torch.utils.data as loaders
from torch import Tensor

from ..config import OWN
from ..progress import LOG
from .dataset import ImageDataset, Transform, channels_first, to_bytes
from .order import transformed
from .pillow import channels_of, obstacle, upright
from .reading import make_room

HELD_OUT = 10  # the last of every so many images is held out of a data set without a test set
# Names that data sets of the Hugging Face Hub give to a column of images, to one of labels, and to
# the images that are held out.
IMAGES = ("image", "img", "images", "pixel_values")
LABELS = ("label", "labels", "fine_label")
HELD_OUT_SPLITS = ("validation", "valid", "val", "test")
# Items that are read again, which shows transforms that draw random numbers.
READ_AGAIN = 8
# A range is stated by values that may be off by this.
ROUNDING = 1e-3
# Images whose largest byte is below are taken for numbers of another range.
DARK = 32


class Given(NamedTuple):
    """Images as they were given, (N, C, H, W) uint8 or float32, and labels (N,) int64 or names."""

    images: Tensor
    labels: Tensor | list[str] | None
    split: str
    source: str
    transform: Transform | None = None
    class_names: tuple[str, ...] = ()


def own_images(dataset: Sized, split: str = "train", labels: Any = None) -> ImageDataset:
    """The images of a data set of one's own, as bytes; in a temporary file if memory is too small.

    dataset: an `ImageDataset`; an array or tensor (N, C, H, W), (N, H, W, C) or (N, H, W), or a
    tuple of it and its labels; a data set of the Hugging Face Hub; a dictionary of splits, of which
    `split` is taken; a DataLoader; or anything with a length, such as a `torch.utils.data.Dataset`.
    Its items are images, or tuples of an image and perhaps a label. Of a DataLoader the images that
    its sampler visits are taken, in the order of the data set. An image is a PIL image or an array
    (C, H, W), (H, W, C) or (H, W). PIL images of any mode become grey or RGB, each by its mode.
    Arrays are whole numbers in 0 .. 255, bool, or floating point in [0, 1] (as torchvision's
    ToTensor makes it) or [-1, 1], which is rounded to the nearest byte. labels: whole numbers (N,),
    one-hot (N, K), or names, whose classes are in sorted order. Raises ValueError, with the item's
    number, for anything else and for images of several shapes.
    """
    if isinstance(dataset, ImageDataset) and labels is None:
        return dataset
    (given,) = _as_data_sets(_read(dataset, split, labels))
    return given


def split_own(
    dataset: Sized, labels: Any = None, transform: Transform | None = None
) -> tuple[ImageDataset, ImageDataset]:
    """Training and held-out images from the arguments of `dsmooth.train`.

    Of images that come without held-out ones, one in HELD_OUT is held out. transform: of the
    training images, if it is not that of their `ImageDataset`.
    """
    if isinstance(dataset, Mapping):
        name = next((name for name in HELD_OUT_SPLITS if name in dataset), None)
        parts = [_read(dataset, split) for split in ("train", name) if split is not None]
    elif (two := _training_and_held_out(dataset)) is not None:
        parts = [_read(two[0], "train"), _read(two[1], "test")]
    else:
        parts = [_read(dataset, "train", labels)]
    if labels is not None and (len(parts) > 1 or isinstance(dataset, Mapping)):
        raise ValueError(
            "labels= is for one set of images: give ((images, labels), (held-out images, labels))"
        )
    sets = _as_data_sets(*parts)
    if len(sets) == 1:
        (whole,) = sets
        if len(whole) < HELD_OUT:
            raise ValueError(
                f"the data set must hold {HELD_OUT} images or more, one of which is held out, got "
                f"{len(whole)}; or give (training images, held-out images)"
            )
        last = torch.arange(len(whole)) % HELD_OUT == HELD_OUT - 1
        chosen = {"train": ~last, "test": last}
        sets = [replace(whole.part(mask), split=split) for split, mask in chosen.items()]
    train, test = sets
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


def _training_and_held_out(dataset: Any) -> tuple[Any, Any] | None:
    """The two data sets of a tuple, or of a list such as random_split's; None for one set."""
    if not isinstance(dataset, tuple | list) or _is_labelled(dataset):
        return None
    sets = [each for each in dataset if isinstance(each, loaders.Dataset | loaders.DataLoader)]
    if isinstance(dataset, list) and (not sets or len(sets) < len(dataset)):
        return None  # of images
    if len(dataset) != 2:
        raise ValueError(
            f"a tuple or list of data sets must be (training images, held-out images), got "
            f"{len(dataset)}"
        )
    return dataset[0], dataset[1]


def _is_labelled(dataset: Any) -> bool:
    """Whether it is a tuple (images, labels) of arrays: images have three dimensions at least."""
    if not isinstance(dataset, tuple) or len(dataset) != 2:
        return False
    images, labels = dataset
    flat = isinstance(labels, Tensor | np.ndarray) and labels.ndim <= 2
    numbers = isinstance(labels, list | tuple) and bool(labels)
    flat |= numbers and isinstance(labels[0], int | np.integer | str)
    return flat and isinstance(images, Tensor | np.ndarray)


def _read(dataset: Any, split: str, labels: Any = None) -> Given:
    """The images of `own_images` before their range is known."""
    if isinstance(dataset, Mapping):
        if split not in dataset:
            raise ValueError(f"the data set has no split {split!r}, but {', '.join(dataset)}")
        return _read(dataset[split], split, labels)
    if _is_labelled(dataset):
        if labels is not None:
            raise ValueError("labels= was given beside (images, labels): leave one out")
        dataset, labels = dataset
    if isinstance(dataset, ImageDataset):
        given = Given(
            dataset.images,
            dataset.labels,
            dataset.split,
            dataset.source,
            dataset.transform,
            dataset.class_names,
        )
    elif isinstance(dataset, loaders.DataLoader):
        given = _read(_images_of(dataset), split)
    elif isinstance(dataset, Tensor | np.ndarray):
        images = _images(_tensor(dataset, "images"), "images")
        given = Given(images, None, split, "images given in Python")
    elif isinstance(dataset, str | PathLike):
        raise ValueError(
            f'the data set must hold images, got the path {dataset}: data="folder" and data_dir '
            "of the settings read a folder"
        )
    elif not hasattr(dataset, "__len__"):
        raise ValueError(
            f"the data set must have a length, got a {type(dataset).__name__}; of one that is read "
            "in order, list(itertools.islice(dataset, 1000)) holds the first 1,000 images"
        )
    else:
        given = _read_items(dataset, split)
    if not given.images.numel():
        raise ValueError(f"the {split} data set must have a length and hold images, got none")
    if given.images.dtype == torch.int16:
        if (high := int(given.images.max())) <= 1:
            raise ValueError(
                f"whole numbers up to {high} could be black and white, or nearly black: images of "
                "dtype bool are black and white"
            )
        given = given._replace(images=given.images.byte())
    if labels is None:
        return given
    if len(labels) == len(given.images) and all(isinstance(label, str) for label in labels):
        return given._replace(labels=[*labels], class_names=())
    return given._replace(labels=_labels(labels, len(given.images)), class_names=())


def _images_of(loader: loaders.DataLoader[Any]) -> Any:
    """The images that a DataLoader's sampler goes through: its data set or a part of it."""

    def refuse(what: str, hint: str) -> NoReturn:
        raise ValueError(f"training makes batches of its own and cannot use {what}: {hint}")

    if loader.batch_sampler is not None and type(loader.batch_sampler) is not loaders.BatchSampler:
        refuse("the DataLoader's batch_sampler", "give the data set, or a Subset of it")
    if loader.collate_fn not in (loaders.default_collate, loaders.default_convert):
        refuse("the DataLoader's collate_fn", "give the data set, whose items are images")
    dataset: Any = loader.dataset
    if isinstance(dataset, loaders.IterableDataset):
        return dataset
    if isinstance(loader.sampler, loaders.DistributedSampler):
        refuse("a DistributedSampler", "give the data set, of which each process takes its share")
    indices = list(islice(loader.sampler, len(dataset) + 1))
    if len(set(indices)) < len(indices):
        refuse("a sampler that visits images more than once", "give a Subset of the data set")
    every = len(indices) == len(dataset)
    return dataset if every else loaders.Subset(dataset, sorted(indices))


def _read_items(given: Any, split: str) -> Given:
    """The items of a data set with a length, each an image and perhaps a label."""
    # A data set that is read in order inherits a __getitem__ that only raises.
    items = given if hasattr(type(given), "__iter__") else map(given.__getitem__, range(len(given)))
    source, count = f"a {type(given).__name__} given in Python", 0
    images, labels = torch.empty(0), list[int | str | None]()
    for number, item in enumerate(islice(items, len(given))):
        image, label = _image_and_label(number, item)
        if number == 0:
            kind = image.numpy().dtype.type
            images = torch.from_numpy(make_room(source, (len(given), *image.shape), kind))
        if (image.shape, image.dtype) != (images.shape[1:], images.dtype):
            size = image.shape[1:] == images.shape[2:] and image.dtype == images.dtype
            how = ': image.convert("RGB") makes colour of grey Pillow images' * size
            raise ValueError(
                f"images must have one shape and dtype, got {tuple(images.shape[1:])} "
                f"{images.dtype} and item {number} of {tuple(image.shape)} {image.dtype}{how}"
            )
        images[number] = image
        labels.append(label)
        if type(label) is not type(labels[0]):
            raise ValueError(
                f"labels must be of one kind, got {labels[0]!r} of item 0 and {label!r} of item "
                f"{number}"
            )
        count += 1
    if count < len(given):
        raise ValueError(f"the data set says that it has {len(given)} items, but gave {count}")
    if not isinstance(given, list | tuple):
        _read_again(given, images[:READ_AGAIN])
    if not isinstance(labels[0] if labels else None, int):
        names = [label for label in labels if isinstance(label, str)]
        return Given(images, names or None, split, source)
    features = getattr(given, "features", None)  # of a data set of the Hugging Face Hub
    columns = (features[name] for name in LABELS if features and name in features)
    classes = tuple(getattr(next(columns, None), "names", None) or ())
    return Given(images, torch.tensor(labels), split, source, None, classes)


def _read_again(given: Any, images: Tensor) -> None:
    """Warn if the first items differ at a second read: nothing else would notice it."""
    with suppress(NotImplementedError, TypeError, KeyError, IndexError):
        for number, before in enumerate(images):
            now, _ = _image_and_label(number, given[number])
            if now.shape != before.shape or not torch.equal(now, before):
                LOG.warning(
                    "item %d of the data set differs at a second read: images are read once, so "
                    "its random transforms are frozen; transform= applies them at each visit",
                    number,
                )
                return


def _image_and_label(number: int, item: Any) -> tuple[Tensor, int | str | None]:
    """The image (C, H, W) of an item, bytes or floating point, and its label."""
    if isinstance(item, Mapping):
        image, label = (next((n for n in names if n in item), None) for names in (IMAGES, LABELS))
        if image is None:
            raise ValueError(
                f"item {number} must have an entry {', '.join(IMAGES)}, got {', '.join(item)}"
            )
        item = (item[image], item.get(label))
    parts = item if isinstance(item, tuple | list) else (item,)
    values = _images(_tensor(parts[0], f"item {number}")[None], f"item {number}")[0]
    return values, _label(number, parts[1]) if len(parts) > 1 else None


def _label(number: int, value: Any) -> int | str | None:
    """The class that a whole number, a one-hot vector or a name means; None for no label.

    Raises ValueError for another number.
    """
    if isinstance(value, str):
        return str(value)
    if not isinstance(value, int | float | np.generic | np.ndarray | Tensor):
        return None
    with suppress(ValueError, TypeError):
        return int(_labels(torch.as_tensor(value).reshape(1, -1), 1))
    if np.prod(np.shape(value)) == 1:
        raise ValueError(f"the label of item {number} must be a whole number, got {value}")
    return None


def _labels(values: Any, count: int) -> Tensor:
    """Labels (N,) int64 from whole numbers (N,) or one-hot vectors (N, K)."""
    array = values if isinstance(values, Tensor) else np.asarray(values)
    if not isinstance(array, Tensor) and array.dtype.kind not in "buif":
        raise ValueError(f"labels must be whole numbers ({count},), got one like {values[0]!r}")
    found = torch.as_tensor(array).detach().cpu()
    if found.ndim == 2 and found.shape[1] == 1:
        found = found[:, 0]
    if found.ndim == 2 and bool(((found == 0) | (found == 1)).all() & (found.sum(1) == 1).all()):
        found = found.long().argmax(1)
    if tuple(found.shape) != (count,) or not bool((found == found.long()).all()):
        raise ValueError(
            f"labels must be whole numbers ({count},), or one-hot ({count}, K), got "
            f"{found.dtype} of shape {tuple(found.shape)}"
        )
    return found.long()


def _tensor(values: Any, name: str) -> Tensor:
    """A tensor, an array or a PIL image as a tensor on the CPU, which shares memory if it can."""
    if isinstance(values, Tensor):
        return values.detach().cpu()
    if hasattr(values, "getbands"):  # a PIL image
        if (why := obstacle(values, in_memory=True)) is not None:
            raise ValueError(f"{name} {why}")
        values = upright(values, channels_of(values))
    array = np.ascontiguousarray(values)
    if array.dtype.kind not in "buif":
        raise ValueError(f"{name} must be an image, got a {type(values).__name__}")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The given NumPy array is not writable")  # only read here
        return torch.from_numpy(array)


def _images(x: Tensor, name: str) -> Tensor:
    """Images (N, C, H, W), bytes or float32, of an array in one of three layouts."""
    images, shape = channels_first(x), tuple(x.shape)
    if images is None:
        n, shape = ("N, ", shape) if name == "images" else ("", shape[1:])
        forms = f"({n}C, H, W), ({n}H, W, C) or ({n}H, W) with C = 1 or 3"
        raise ValueError(f"{name} must be {forms}, got {shape}")
    if x.is_floating_point():
        return images.float()
    if x.dtype == torch.bool:
        return images.byte() * 255
    if x.dtype == torch.uint8 or not x.numel():
        return images
    low, high = map(int, x.aminmax())
    if low < 0 or high > 255:
        raise ValueError(f"{name} must be whole numbers in 0 .. 255, got {low} to {high}")
    return images.short()  # bytes, if one is above 1


def _as_data_sets(*parts: Given) -> list[ImageDataset]:
    """Data sets of bytes. Floating-point images of all parts have one range, [0, 1] or [-1, 1].

    Names of classes are those of all parts.
    """
    kinds = {part.images.dtype for part in parts}
    if len(kinds) > 1:
        raise ValueError(
            "training and held-out images must be of one kind, got bytes and floating point: "
            "dsmooth.to_bytes makes bytes of images in [-1, 1]"
        )
    every = [part.images for part in parts]
    if torch.uint8 not in kinds:
        ends = torch.stack([torch.stack(images.aminmax()) for images in every])
        low, high = float(ends.min()), float(ends.max())  # NaN for a NaN
        if low >= -ROUNDING and high <= 1 + ROUNDING:
            every = [(images * 255).round().clamp(0, 255).to(torch.uint8) for images in every]
        elif -1 - ROUNDING <= low <= -0.5 and high <= 1 + ROUNDING:
            if float(ends[:, 0].max()) >= 0:
                ranges = " and ".join(f"{a:g} to {b:g}" for a, b in ends.tolist())
                raise ValueError(
                    f"training and held-out images must be of one range, got {ranges}: "
                    "dsmooth.to_bytes makes bytes of images in [-1, 1]"
                )
            every = [to_bytes(images) for images in every]
        else:
            how = "convert them to bytes, or leave out Normalize"
            if low >= 0 and 1 < high < DARK:
                how = f"images / {high:g} lies in [0, 1]"
            elif low >= 0 and high <= 255:
                how = "images.to(torch.uint8) makes bytes of 0 .. 255"
            raise ValueError(
                "images must be uint8 or floating point in [0, 1] or [-1, 1], got "
                f"{low:g} to {high:g}: {how}"
            )
    for images, part in zip(every, parts, strict=True):
        if (high := int(images.max())) < DARK:
            LOG.warning(
                "the largest byte of the %s images is %d, where white is 255: they are nearly "
                "black; images / %d lies in [0, 1]",
                *(part.split, high, max(high, 1)),
            )
    names = sorted(
        {name for part in parts if isinstance(part.labels, list) for name in part.labels}
    )
    number = {name: i for i, name in enumerate(names)}
    sets = []
    for images, part in zip(every, parts, strict=True):
        labels, classes = part.labels, part.class_names
        if isinstance(labels, list):
            labels, classes = torch.tensor([number[name] for name in labels]), tuple(names)
        about = part.split, part.source, part.transform
        sets.append(ImageDataset(images, labels, OWN, *about, class_names=classes))
    return sets
