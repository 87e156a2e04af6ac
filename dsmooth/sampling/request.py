"""A request for images: everything that determines them, except the weights."""

from __future__ import annotations

import math
import os
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import accumulate
from numbers import Real
from operator import index
from typing import Any, TypedDict, get_args

import numpy as np
import torch
from torch import Tensor

from ..config import Classes, Method, ModelConfig, Precision
from ..fields import SettingError, check_number, check_one_of, check_tensor
from ..nn.condition import NO_CLASS, ClassLabel, labels_of
from ..nn.images import check_images, check_scale, check_size
from ..philox import Stream, image_words, seed_words, whole_index
from ..progress import LOG

PER_IMAGE = (np.ndarray, Tensor, list, tuple)  # types of labels of several images


class DrawChoices(TypedDict, total=False):
    """The `Choices` without known pixels."""

    seed: int | None
    generator: torch.Generator | None
    first_index: int
    temperature: float
    label: ClassLabel | None
    guidance: float


class Choices(DrawChoices, total=False):
    """Keyword arguments of every sampler. With the weights they determine the images.

    seed: 0 by default. None draws a seed, which a warning of the logger `dsmooth` reports.
    generator: a torch.Generator that gives the seed instead, a new one at each call. first_index:
    index of the first image in the stream of `seed`, 0 by default. temperature: > 0, 1 by default;
    divides the logits and multiplies the scales.

    label: for models with classes. A number or a name is the class of all images. "each" gives
    image i the class i modulo the number of classes. "prior" draws the class of each image by the
    frequencies of the classes in the training images (uniform if unknown), as a function of the
    seed and the image's index. A tensor (n,) int64, or a list of numbers or names, has the class of
    every image, -1 for none. guidance: >= 0, 0 by default; for models with classes that were
    trained with label_dropout. A pixel's parameters p0 without a class and p1 with the class become
    p0 + (1 + guidance) (p1 - p0) (docs/math.md, section 8).

    known: (n or 1, C, H, W); its pixels are kept where mask, bool (n or 1, H, W) or (H, W), is
    True. Every other pixel is drawn given all pixels before it, with its own noise. Known pixels do
    not influence the pixels before them: unless they come first in raster order, the distribution
    may differ much from the model's conditional distribution.
    """

    known: Tensor | None
    mask: Tensor | None


@dataclass(frozen=True, eq=False)
class KnownPixels:
    """Images (n, C, H, W), 0 at unknown pixels; mask (n, H, W) bool, True at known pixels."""

    images: Tensor
    mask: Tensor

    @property
    def values(self) -> Tensor:
        """The known pixels: (number, C)."""
        return self.images.movedim(1, -1)[self.mask]

    def keep(self, x: Tensor, *, as_bytes: bool = False) -> Tensor:
        """A contiguous copy of x (n, C, H, W) with the known pixels inserted.

        as_bytes: for a model that depends on each pixel's byte: raises ValueError for known pixels
        that are not bytes.
        """
        images = self.images
        if images.dtype == torch.promote_types(x.dtype, torch.float32):
            images = images.to(x.dtype)  # rounded if x has half precision
        check_tensor("known", images, tuple(x.shape), x.device, (x.dtype,))
        if as_bytes:
            check_scale("known", self.values, as_bytes=True)
        return torch.where(self.mask[:, None], images, x).contiguous()


@dataclass(frozen=True)
class Request:
    """Images first_index .. first_index + count - 1 of the stream of `seed`.

    method, precision: see `SmoothedPair.sample`. x_tilde: (count, C, H, W), noisy images for a
    pair to denoise; by default the pair draws them. Other fields: see `Choices`.
    """

    count: int
    seed: int = 0
    first_index: int = 0
    method: Method = "two-step"
    precision: Precision = "auto"
    temperature: float = 1.0
    known: KnownPixels | None = None
    label: ClassLabel | None = None
    guidance: float = 0.0
    x_tilde: Tensor | None = None

    def __post_init__(self) -> None:
        label: Any = self.label
        if isinstance(label, np.ndarray | Tensor) and label.ndim == 0:
            label = label.item()
        check_number("count", self.count)
        seed_words(self.seed)
        whole_index(self.first_index, self.count)
        check_one_of("method", self.method, get_args(Method))
        check_one_of("precision", self.precision, get_args(Precision))
        if isinstance(label, PER_IMAGE) and len(label) != self.count:
            raise SettingError("label", f"must have {self.count} classes, got {len(label)}")
        plain = {
            "label": label,
            **{name: index(getattr(self, name)) for name in ("count", "seed", "first_index")},
            "temperature": normal_float("temperature", self.temperature),
            "guidance": normal_float("guidance", self.guidance, or_zero=True),
        }
        vars(self).update(plain)  # numbers of numpy or torch as those of Python

    @classmethod
    def make(
        cls,
        count: int,
        choices: Mapping[str, object],
        method: Method = "two-step",
        precision: Precision = "auto",
        x_tilde: Tensor | None = None,
    ) -> Request:
        """Make a request from a user's `choices`. TypeError for a name that is none of them."""
        fields: dict[str, Any] = {**choices}
        generator, known, mask = (fields.pop(n, None) for n in ("generator", "known", "mask"))
        if (known is None) != (mask is None):
            words = "known and mask go together: images, and which of their pixels to keep"
            raise ValueError(words)
        if known is not None:
            fields["known"] = known_pixels(known, mask, count)
        if generator is not None:
            if fields.get("seed") is not None:
                raise ValueError("seed and generator both decide the images: leave one out")
            device = generator.device
            seed = torch.randint(2**63 - 1, (), generator=generator, device=device)
            fields["seed"] = int(seed)
        elif fields.get("seed", 0) is None:
            fields["seed"] = drawn_seed()
        return cls(count, method=method, precision=precision, x_tilde=x_tilde, **fields)

    def labels(self, classes: Classes | None, device: torch.device | str = "cpu") -> Tensor | None:
        """The label (count,) int64 of every image for a model with `classes`; None without classes.

        It is made on `device`, so that a CUDA graph can capture it.
        """
        label, first = self.label, self.first_index
        if classes is None or not isinstance(label, str) or label not in ("each", "prior"):
            # A tensor is checked before the copy to a GPU, where values are not.
            place = None if isinstance(label, Tensor) else device
            numbers = labels_of(label, classes, self.count, place)
            return None if numbers is None else numbers.to(device)
        count = len(classes.names)
        if label == "each":
            return (torch.arange(self.count, device=device) + first) % count
        word = image_words(
            self.count, 1, seed=self.seed, first_index=first, stream=Stream.CLASS, device=device
        )[:, 0, 0]
        if not classes.shares:
            return word * count >> 32
        # A class owns the words between two limits.
        limits = (round(2**32 * share) for share in accumulate(classes.shares[:-1]))
        return sum(((word >= limit).long() for limit in limits), torch.zeros_like(word))

    def passes(self, config: ModelConfig, like: Tensor) -> list[Tensor | None]:
        """The labels of all images for each pass of a model; guidance adds a pass without a class.

        Raises ValueError for guidance with a model without classes, and the errors of `labels`.
        """
        labels = self.labels(config.classes, like.device)
        if not self.guidance:
            return [labels]
        check_guidance(config)
        assert labels is not None  # the model has classes
        return [labels, torch.full_like(labels, NO_CLASS)]

    def repeated(self, draws: int) -> Request:
        """The request for `draws` images of each of these, one after the other."""
        check_number("draws", draws)
        rows = [row for row in range(self.count) for _ in range(draws)]
        return self._rows(rows, len(rows))

    def part(self, part: range) -> Request:
        """The request for some of these images, by their numbers 0 .. count - 1."""
        # Views: a copy by numbers would wait for a GPU, and no CUDA graph could capture it.
        rows = self._rows(slice(part.start, part.stop), len(part))
        return replace(rows, first_index=self.first_index + part.start)

    def _rows(self, rows: list[int] | slice, count: int) -> Request:
        """The request with the known pixels, labels and x~ of these rows, `count` in all."""
        known, x_tilde = self.known, self.x_tilde
        label: Any = self.label
        has_each = isinstance(self.label, PER_IMAGE)
        if has_each and isinstance(rows, list) and not isinstance(self.label, Tensor):
            label = [label[row] for row in rows]
        elif has_each:
            label = label[rows]
        return replace(
            self,
            count=count,
            known=known and KnownPixels(known.images[rows], known.mask[rows]),
            label=label,
            x_tilde=None if x_tilde is None else x_tilde[rows],
        )


def known_pixels(known: Tensor, mask: Tensor, count: int) -> KnownPixels:
    """The known pixels of `count` images (see `Choices`)."""
    check_images("known", known)
    check_tensor("known", known, (1 if len(known) == 1 else count, "C", "H", "W"))
    mask = mask[None] if mask.ndim == 2 else mask
    shape = 1 if len(mask) == 1 else count, *known.shape[2:]
    check_tensor("mask", mask, shape, known.device, (torch.bool,))
    images = torch.where(mask[:, None], known.detach(), 0)
    if not images.isfinite().all():
        raise ValueError("known pixels must be finite, got a NaN or an infinity")
    return KnownPixels(images.expand(count, -1, -1, -1), mask.expand(count, -1, -1))


def keep_top(fraction: float, size: tuple[int, int]) -> Tensor:
    """The mask (1, H, W) of the first round(fraction * H) rows: a prefix in raster order.

    Raises ValueError for a fraction outside 0 .. 1.
    """
    if not 0 <= fraction <= 1:
        raise SettingError("keep_top", f"must lie in 0 .. 1, got {fraction}")
    height, width = size
    return (torch.arange(height) < round(fraction * height)).view(1, -1, 1).expand(1, -1, width)


def check_guidance(config: ModelConfig) -> None:
    """Raise ValueError unless the model supports guidance: a pass with a class and one without."""
    if config.classes is None or config.classes.dropout == 0:
        found = "has no classes" if config.classes is None else "was trained with label_dropout 0"
        raise SettingError(
            "guidance",
            f"needs a model with classes and label dropout; this one {found}",
        )


def drawn_seed() -> int:
    """Draw a 32-bit seed, and report it by the logger `dsmooth`."""
    seed = secrets.randbits(32)
    LOG.warning("drew seed %d; seed=%d gives the same images again", seed, seed)
    return seed


def normal_float(name: str, value: object, *, or_zero: bool = False) -> float:
    """A temperature or guidance weight as a float. Raises ValueError if it is out of range.

    The samplers compute in float32, so a number that may round to 0 there is refused.
    """
    normal = torch.finfo(torch.float32)
    number = float(value) if isinstance(value, Real) else math.nan
    if not normal.tiny <= number <= normal.max and not (or_zero and number == 0):
        zero = "0, or " if or_zero else ""
        raise SettingError(name, f"must be {zero}positive and a normal float32, got {value!r}")
    return number


def checked_shape(count: int, channels: int, height: int, width: int) -> tuple[int, int, int, int]:
    """The shape of images to draw. Raises ValueError for a bad size, or if memory cannot hold
    them."""
    shape = (count, channels, *check_size((height, width), "height", "width"))
    needed, memory = 4 * math.prod(shape), os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if needed > memory:
        raise ValueError(
            f"{count:,} images take {needed:,} bytes, but the machine has {memory:,}: draw fewer "
            "at a time, or into a folder"
        )
    return shape
