"""Images in memory: the one type that every reader returns."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..config import Classes
from ..fields import SettingError, check_number, check_tensor
from ..pixels import byte_of, value_of

T = TypeVar("T")

MANY = 10  # images that an error names
# What to take instead of values of another kind.
REMEDIES = {
    "bool": "255 * x as uint8",
    "uint16": "x // 257 as uint8, if white is 65535",
    "complex": "x.real",
    "object": "numpy.array(x.tolist())",
}
# Bytes that are all below the first, or not below the second, are of another range.
DARK, PALE = 32, 127


def to_float(images: Tensor) -> Tensor:
    """Map bytes to [-1, 1] by x = byte / 127.5 - 1.

    images: uint8, any shape. Returns float32 of the same shape.
    Raises ValueError for another dtype.
    """
    if images.dtype != torch.uint8:
        raise ValueError(f"images must have dtype torch.uint8, got {images.dtype}")
    return value_of(images.to(torch.float32))


def to_bytes(x: Tensor) -> Tensor:
    """Map [-1, 1] to bytes: the inverse of `to_float`, rounded to the nearest byte and clamped.

    x: floating point, any shape; values outside [-1, 1], infinities too, go to 0 or 255.
    Returns uint8 of the same shape. Raises ValueError for another dtype or a NaN in x.
    """
    if not x.is_floating_point():
        raise ValueError(f"x must have a floating-point dtype, got {x.dtype}")
    if x.isnan().any():
        raise ValueError(f"x must be free of NaN, got {int(x.isnan().sum())} among {x.numel()}")
    # (x + 1) * 127.5 in bfloat16, with its 8 significant bits, would round before round() does.
    byte = byte_of(x.to(torch.promote_types(x.dtype, torch.float32)))
    return byte.round().clamp(0, 255).to(torch.uint8)


def round_to_bytes(x: Tensor) -> Tensor:
    """The nearest of the 256 values byte / 127.5 - 1 to x, which a likelihood of bytes needs.

    x: floating point, any shape, clamped to [-1, 1]. Same shape and dtype. Raises as `to_bytes`.
    """
    return to_float(to_bytes(x)).to(x.dtype)


def other_range(images: Tensor, name: str) -> str | None:
    """A sentence on bytes that are all dark or all pale, rather of another range; else None."""
    low, high = map(int, images.aminmax())
    if low == high or (high >= DARK and low < PALE):
        return None
    return (
        f"the bytes of {name} are {low} .. {high}, where black is 0 and white 255: 2 * x - 1 makes "
        "images in [-1, 1] of images in [0, 1], and 255 * x bytes of zeros and ones"
    )


def pixels_of(values: Tensor | NDArray[Any], name: str) -> Tensor:
    """The values of an array or tensor, uint8 or float32, on the CPU.

    Raises ValueError, naming `name`, for values that are neither bytes nor floating point.
    """
    kind = getattr(values.dtype, "name", "") or str(values.dtype).removeprefix("torch.")
    is_float = (
        values.dtype.kind == "f" if hasattr(values.dtype, "kind") else values.is_floating_point()
    )
    if kind != "uint8" and not is_float:
        ways = (words for start, words in REMEDIES.items() if kind.startswith(start))
        remedy = next(ways, "x as uint8, if white is 255")
        words = f"uint8, or floating point in [-1, 1], got {kind}: take {remedy}"
        raise ValueError(f"{name} must be {words}")
    if isinstance(values, np.ndarray):  # torch takes no other byte order or negative strides
        wanted = np.float32 if is_float else np.uint8
        return torch.from_numpy(np.require(values, wanted, ["C", "W"]))
    x = values.detach().cpu().to_dense()
    return x.float() if is_float else x


def channels_first(x: Tensor, name: str) -> Tensor:
    """Images (N, C, H, W), C = 1 or 3, from that order, (N, H, W, C) or (N, H, W).

    Raises ValueError, naming `name`, for another shape.
    """
    images = x[:, None] if x.ndim == 3 else x
    if x.ndim == 4 and x.shape[1] not in (1, 3):
        images = x.permute(0, 3, 1, 2)
    if images.ndim != 4 or images.shape[1] not in (1, 3):
        raise ValueError(
            f"{name} must hold images (N, C, H, W), (N, H, W, C) or (N, H, W) with C = 1 or 3, got "
            f"shape {tuple(x.shape)}"
        )
    return images


def _attempt(read: Callable[[T], Tensor], item: T) -> Tensor | Exception:
    try:
        return read(item)
    except (ValueError, OSError) as error:
        return error


def stacked(
    read: Callable[[T], Tensor],
    items: Iterable[T],
    name: Callable[[int], str],
    apply: Callable[..., Iterable[Tensor | Exception]] = map,
) -> Tensor:
    """The images read(item), (C, H, W), as bytes (N, C, H, W), grey if all are.

    name: of an image by its number, for errors. apply: as `map`, perhaps in threads. Raises
    ValueError for images that cannot be read or have another size, once for all of them.
    """
    pixels, channels = bytearray(), 1
    faults, sizes = list[str](), dict[tuple[int, int], list[int]]()
    for number, row in enumerate(apply(partial(_attempt, read), items)):
        if isinstance(row, Exception):
            faults.append(str(row))
            continue
        sizes.setdefault((row.shape[1], row.shape[2]), []).append(number)
        if len(sizes) == 1:
            channels = max(channels, len(row))
            pixels += row.expand(3, -1, -1).numpy().tobytes()  # a grey one in each channel
    remedy = dict[str, object]()
    if len(faults) > MANY:
        faults[MANY:] = [f"and {len(faults) - MANY:,} other images cannot be used"]
    if len(sizes) > 1:
        remedy["image_size"] = None
        found = [
            f"{height} x {width} in {name(first)}" + f" and {len(more):,} others" * bool(more)
            for (height, width), (first, *more) in sizes.items()
        ]
        found[MANY:] = [f"{len(found) - MANY:,} other sizes"] * (len(found) > MANY)
        words = f"{', '.join(found[:-1])} and {found[-1]}: crop them, or of a folder set"
        faults.append(f"the images must have one size, got {words}")
    if faults:
        raise SettingError((), "\n".join(faults), **remedy)
    (height, width), count = next(iter(sizes), (4, 4)), sum(map(len, sizes.values()))
    images = torch.frombuffer(pixels or bytearray(1), dtype=torch.uint8)[: len(pixels)]
    return images.view(count, 3, height, width)[:, :channels].contiguous()


def as_grey(images: Tensor) -> Tensor:
    """Grey images (N, 1, H, W) of RGB images (N, 3, H, W) with equal channels; others unchanged."""
    first = images[:, :1]
    return first if images.shape[1] == 3 and bool((images == first).all()) else images


@dataclass(frozen=True, eq=False, init=False)
class ImageDataset:
    """Images of one size, with or without labels, held in memory as bytes.

    images: (N, C, H, W) uint8, C = 1 (grey) or 3 (RGB).
    labels: (N,) int64, or None.
    name: the data set's name, as given to `load_dataset`.
    split: "train", "test", or "all" of a folder.
    source: where the images come from, in words for a person.
    class_names: of the classes 0, 1, ..; by default their numbers; empty without labels.
    embedded: whether these are images of the MNIST subset inside the package.
    Raises ValueError for another shape or dtype.
    """

    images: Tensor
    labels: Tensor | None
    name: str
    split: str
    source: str
    class_names: tuple[str, ...]
    embedded: bool

    def __init__(
        self,
        images: Tensor,
        labels: Tensor | None,
        name: str,
        split: str,
        source: str,
        class_names: tuple[str, ...] = (),
        embedded: bool = False,
    ) -> None:
        check_tensor("images", images, ("N", (1, 3), "H", "W"), dtypes=(torch.uint8,))
        if labels is not None:
            check_tensor("labels", labels, images.shape[:1], dtypes=(torch.int64,))
        names = class_names if labels is not None else ()
        if labels is not None and len(labels):
            low, high = map(int, labels.aminmax())
            names = names or tuple(map(str, range(high + 1)))
            if low < 0 or high >= len(names):
                expected = f"0 .. {len(names) - 1}, for the classes {', '.join(names)}"
                raise ValueError(f"labels must lie in {expected}, got {low} .. {high}")
        vars(self).update(images=images, labels=labels, name=name, split=split, source=source)
        vars(self).update(class_names=names, embedded=embedded)

    def __len__(self) -> int:
        return self.images.shape[0]

    def __getitem__(self, index: int) -> Tensor | tuple[Tensor, int]:
        """Image `index`, (C, H, W) float32 in [-1, 1]; with labels a pair of image and label.

        A `torch.utils.data.DataLoader` takes it. Raises IndexError beyond the last image.
        """
        x = to_float(self.images[index])
        return x if self.labels is None else (x, int(self.labels[index]))

    @property
    def image_size(self) -> tuple[int, int]:
        """(H, W) in pixels."""
        return self.images.shape[2], self.images.shape[3]

    @property
    def image_channels(self) -> int:
        """1 for grey, 3 for RGB."""
        return self.images.shape[1]

    @property
    def words(self) -> dict[str, str]:
        """What images these are, for a record of numbers."""
        return {"name": self.name, "split": self.split, "source": self.source}

    def part(self, chosen: Tensor | slice) -> ImageDataset:
        """The images, and labels, that a mask, numbers or a slice choose."""
        labels = None if self.labels is None else self.labels[chosen]
        return replace(self, images=self.images[chosen], labels=labels)

    def first(self, limit: int | None) -> ImageDataset:
        """The first `limit` images, all for None. Raises ValueError for a limit below 1."""
        if limit is None:
            return self
        check_number("limit", limit)
        return self.part(slice(limit))

    def known_labels(self, needed_by: str | tuple[()] = ()) -> Tensor:
        """The labels (N,). Without any raises SettingError, of the argument that needs them."""
        if self.labels is None:
            raise SettingError(needed_by, f"needs labelled images, but {self.source} has no labels")
        return self.labels

    def labels_for(self, classes: Classes | None) -> Tensor | None:
        """The labels (N,) int64 for a model with `classes`, matched by name; None for one without.

        Raises SettingError, naming one, for images of another class, and for images without labels.
        """
        if classes is None:
            return None
        labels = self.known_labels("classes")
        numbers = {name: number for number, name in enumerate(classes.names)}
        found = torch.tensor([numbers.get(name, -1) for name in self.class_names])[labels]
        if (found < 0).any():
            other = self.class_names[int(labels[found < 0][0])]
            raise SettingError(
                (),
                f"{self.source} has images of class {other}, which is none of the model's classes "
                f"{', '.join(classes.names)}",
            )
        return found

    def has_classes(self, classes: Classes | None) -> bool:
        """Whether some image is of one of the classes of a model; False for one without."""
        if classes is None or self.labels is None:
            return False
        return any(self.class_names[n] in classes.names for n in self.labels.unique().tolist())

    def classes(self, dropout: float = 0.0) -> Classes:
        """The classes that have images, with their shares, and the label dropout of a training."""
        counts = self.known_labels("classes").bincount(minlength=len(self.class_names))
        kept = counts.nonzero()[:, 0].tolist()
        shares = tuple((counts[kept].double() / counts.sum()).tolist())
        return Classes(tuple(self.class_names[number] for number in kept), shares, dropout)

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the images and labels."""
        sha = hashlib.sha256(str(tuple(self.images.shape)).encode())
        for part in (self.images, self.labels):
            if part is not None:
                sha.update(part.contiguous().numpy().data)
        return sha.hexdigest()

    def batch(self, indices: Tensor) -> Tensor:
        """Return images `indices` ((B,) int64): (B, C, H, W) float32 in [-1, 1]."""
        return to_float(self.images[indices])
