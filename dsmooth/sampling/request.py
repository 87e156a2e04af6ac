"""A request for images: all that decides them, beside the weights."""

from __future__ import annotations

import hashlib
import math
import secrets
from collections.abc import Callable
from dataclasses import dataclass, replace
from numbers import Real
from typing import Literal, SupportsIndex, TypedDict, get_args

import numpy as np
import torch
from torch import Tensor

from .._extension import instruction_sets, unavailable_reason
from ..config import Method, ModelConfig, Precision
from ..cuda import cuda_obstacle
from ..fields import Json, check_number, check_one_of
from ..machine import has_fast_bfloat16, memory_bytes
from ..nn.condition import check_label, zero_label
from ..nn.images import check_images, check_like, check_scale
from ..philox import Stream, image_words, seed_words, whole_index
from ..progress import LOG

# One class for all images; the classes in turn; each drawn from the prior; or (n,) int64, or
# (n, n_classes) soft classes.
Label = int | Literal["each", "prior"] | Tensor | None
# Called with the fraction that is done.
Progress = Callable[[float], None]


class Choices(TypedDict, total=False):
    """Keyword arguments of every sampler. With the weights they decide the images.

    seed: 0 by default. None draws one, and a warning of the logger `dsmooth` states it. generator:
    a torch.Generator that gives the seed instead, a new one at each call.
    first_index: number of the first image in the stream that `seed` names, 0 by default.
    temperature: > 0, 1 by default; divides the logits and multiplies the scales.

    label: for models with classes. A number is the class of all images. "each" makes image i one of
    class i modulo the number of classes. "prior" draws the class of each image, all as likely, as a
    function of the seed and the image's number. A tensor, or an array of numpy, has a class (n,)
    int64, or weights of classes (n, n_classes), for every image. guidance: >= 0, 0 by default; for
    models with classes that were trained with a label_dropout. The parameters p0 of a pixel without
    a class and p1 with it become p0 + (1 + guidance) (p1 - p0) (docs/math.md, section 8).

    known: (n or 1, C, H, W), images whose pixels where mask, (n or 1, H, W) bool, is True are kept.
    Each of the others is drawn given all pixels before it, with its own noise. Known pixels do not
    influence those before them: unless they come first in raster order, the distribution may be far
    off the model's conditional one.
    """

    seed: int | None
    generator: torch.Generator | None
    first_index: int
    temperature: float
    label: Label
    guidance: float
    known: Tensor | None
    mask: Tensor | None


@dataclass(frozen=True, eq=False)
class KnownPixels:
    """Images (n, C, H, W), 0 where no pixel is known; mask (n, H, W) bool, True where one is."""

    images: Tensor
    mask: Tensor

    @property
    def values(self) -> Tensor:
        """The pixels that are known: (number, C)."""
        return self.images.movedim(1, -1)[self.mask]

    def keep(self, x: Tensor, *, as_bytes: bool = False) -> Tensor:
        """x (n, C, H, W) with the known pixels put in, in new memory, contiguous.

        as_bytes: for a model that sees which byte a pixel is. Known pixels that are no bytes then
        raise ValueError.
        """
        images = self.images
        if images.dtype == torch.promote_types(x.dtype, torch.float32):
            images = images.to(x.dtype)  # rounded, where x has half precision
        check_like("known", images, x)
        if as_bytes:
            check_scale("known", self.values, as_bytes=True)
        return torch.where(self.mask[:, None], images, x).contiguous()


def known_pixels(known: Tensor, mask: Tensor, count: int, name: str = "known") -> KnownPixels:
    """The known pixels of `count` images, see `Choices`; an error calls the images `name`."""
    check_images(name, known)
    if not isinstance(mask, Tensor) or mask.dtype != torch.bool:
        kind = mask.dtype if isinstance(mask, Tensor) else f"a {type(mask).__name__}"
        raise TypeError(f"mask must be torch.bool, True where a pixel is known, got {kind}")
    if known.ndim != 4 or known.shape[0] not in (1, count):
        raise ValueError(
            f"{name} must have shape ({count} or 1, C, H, W), got {tuple(known.shape)}"
        )
    height, width = known.shape[2:]
    if mask.ndim != 3 or mask.shape[0] not in (1, count) or mask.shape[1:] != (height, width):
        raise ValueError(
            f"mask must have shape ({count} or 1, {height}, {width}), got {tuple(mask.shape)}"
        )
    if mask.device != known.device:
        raise ValueError(f"mask must be on {name}'s device {known.device}, got {mask.device}")
    images = torch.where(mask[:, None], known.detach(), 0)
    if not images.isfinite().all():
        raise ValueError("known pixels must be finite, got a NaN or an infinity")
    return KnownPixels(images.expand(count, -1, -1, -1), mask.expand(count, -1, -1))


def keep_top(fraction: float, size: tuple[int, int]) -> Tensor:
    """The mask (1, H, W) of the first round(fraction * H) rows: a prefix in raster order.

    Raises ValueError for a fraction outside 0 .. 1.
    """
    if not 0 <= fraction <= 1:
        raise ValueError(f"`keep_top` must lie in 0 .. 1, got {fraction}")
    height, width = size
    return (torch.arange(height) < round(fraction * height)).view(1, -1, 1).expand(1, -1, width)


@dataclass(frozen=True)
class Request:
    """Images first_index .. first_index + count - 1 of the stream that `seed` names.

    method: of `SmoothedPair.sample`. x_tilde: (count, C, H, W), noisy images for a
    pair to denoise; by default it draws them. Other fields: see `Choices`.
    """

    count: int
    seed: int = 0
    first_index: int = 0
    method: Method = "two-step"
    temperature: float = 1.0
    known: KnownPixels | None = None
    label: Label = None
    guidance: float = 0.0
    x_tilde: Tensor | None = None

    def __post_init__(self) -> None:
        if isinstance(self.label, np.ndarray) and self.label.ndim:
            object.__setattr__(self, "label", torch.from_numpy(self.label.copy()))
        elif isinstance(self.label, SupportsIndex) and not isinstance(self.label, bool | Tensor):
            object.__setattr__(self, "label", self.label.__index__())  # numpy's numbers too
        check_number("count", self.count)
        seed_words(self.seed)
        whole_index(self.first_index, self.count)
        for name in ("count", "seed", "first_index"):
            object.__setattr__(self, name, getattr(self, name).__index__())
        check_one_of("method", self.method, get_args(Method))
        object.__setattr__(self, "temperature", normal_float("temperature", self.temperature))
        object.__setattr__(self, "guidance", normal_float("guidance", self.guidance, or_zero=True))
        if isinstance(self.label, Tensor):
            if self.label.ndim not in (1, 2) or len(self.label) != self.count:
                raise ValueError(
                    f"`label` must have shape ({self.count},) or ({self.count}, n_classes), got "
                    f"{tuple(self.label.shape)}"
                )
        elif self.label not in (None, "each", "prior") and (
            type(self.label) is not int or not 0 <= self.label < 2**63
        ):
            raise ValueError(
                f'`label` must be a class, "each", "prior" or a tensor, got {self.label!r}'
            )

    @classmethod
    def make(
        cls,
        count: int,
        choices: Choices,
        method: Method = "two-step",
        x_tilde: Tensor | None = None,
    ) -> Request:
        """The request of a user's choices."""
        names = Choices.__annotations__
        if unknown := [*choices.keys() - names.keys()]:
            raise TypeError(f"there is no argument {unknown[0]!r}; see {', '.join(names)}")
        seed, images, mask = choices.get("seed", 0), choices.get("known"), choices.get("mask")
        if (images is None) != (mask is None):
            raise ValueError("known and mask must be given together")
        generator = choices.get("generator")
        if generator is not None:
            if "seed" in choices:
                raise ValueError("seed and generator were both given: leave one out")
            device = generator.device
            seed = int(torch.randint(2**63 - 1, (), generator=generator, device=device))
        return cls(
            count,
            drawn_seed() if seed is None else seed,
            choices.get("first_index", 0),
            method,
            choices.get("temperature", 1.0),
            None if images is None or mask is None else known_pixels(images, mask, count),
            choices.get("label"),
            choices.get("guidance", 0.0),
            x_tilde,
        )

    def labels(self, n_classes: int, device: torch.device | str = "cpu") -> Tensor | None:
        """The label of every image for a model of `n_classes`; None for a model without classes.

        (count,) int64 or (count, n_classes) floating point, made on `device`, so that a CUDA graph
        can capture it.
        """
        label, modulus = self.label, max(n_classes, 1)
        if isinstance(label, str) and label == "prior":
            first, stream = self.first_index, Stream.CLASS
            words = image_words(
                self.count, 1, seed=self.seed, first_index=first, stream=stream, device=device
            )
            label = words[:, 0, 0] * modulus >> 32
        elif isinstance(label, str):
            first = self.first_index % modulus
            label = (torch.arange(self.count, device=device) + first) % modulus
        elif isinstance(label, int):
            if 0 < n_classes <= label:
                raise ValueError(f"`label` must lie in 0 .. {n_classes - 1}, got {label}")
            label = torch.full((self.count,), label, device=device)
        elif isinstance(label, Tensor):  # before it moves to a GPU, where its values are not read
            check_label(label, n_classes, self.count)
        return None if label is None else label.to(device)

    def passes(self, config: ModelConfig, like: Tensor) -> list[Tensor | None]:
        """The labels of every image in each pass of a model; with guidance a second, of no class.

        Raises ValueError for guidance of a model without classes, and as `labels` does.
        """
        labels = self.labels(config.condition_size, like.device)
        if not self.guidance:
            return [labels]
        if config.condition_size == 0:
            raise ValueError("`guidance` needs a model with classes; this one has none")
        return [labels, zero_label(self.count, config.condition_size, like)]

    def part(self, offset: int, count: int) -> Request:
        """The `count` images behind the first `offset` ones, drawn the same way."""
        span = slice(offset, offset + count)
        known, label = self.known, self.label
        return replace(
            self,
            first_index=self.first_index + offset,
            count=count,
            known=known and KnownPixels(known.images[span], known.mask[span]),
            label=label[span] if isinstance(label, Tensor) else label,
            x_tilde=None if self.x_tilde is None else self.x_tilde[span],
        )

    def parts(self, chunk: int) -> list[Request]:
        """This request in parts of `chunk` images, the last one the rest."""
        starts = range(0, self.count, chunk)
        return [self.part(start, min(chunk, self.count - start)) for start in starts]

    def identity(self) -> Json:
        """The settings that decide an image beside its number and the weights, as JSON."""
        label, known, x_tilde = self.label, self.known, self.x_tilde
        identity = {
            "seed": self.seed,
            "method": self.method,
            "temperature": self.temperature,
            "label": digest_of(label.detach()) if isinstance(label, Tensor) else label,
            "guidance": self.guidance or None,
            "known_sha256": known and digest_of(known.mask, known.images.float()),
            "given_sha256": None if x_tilde is None else digest_of(x_tilde),
        }
        return {name: value for name, value in identity.items() if value is not None}


def drawn_seed() -> int:
    """A seed of 32 bits that the logger `dsmooth` states."""
    seed = secrets.randbits(32)
    LOG.warning("drew seed %d; seed=%d gives the same images again", seed, seed)
    return seed


def precision_on(device: torch.device, precision: Precision) -> Precision:
    """The precision of the cached sampler on `device`: "auto" is bfloat16 where that is faster.

    Raises ValueError for another precision.
    """
    check_one_of("precision", precision, get_args(Precision))
    if precision != "auto":
        return precision
    return "bfloat16" if draws_faster_in_bfloat16(device) else "float32"


def draws_faster_in_bfloat16(device: torch.device) -> bool:
    """Whether the cached sampler does on `device`, with AMX also where nothing else is faster."""
    if (cuda_obstacle(device) if device.type == "cuda" else unavailable_reason()) is not None:
        return False
    return (device.type == "cpu" and "amx" in instruction_sets()) or has_fast_bfloat16(device)


def normal_float(name: str, value: object, *, or_zero: bool = False) -> float:
    """A temperature, or a weight of guidance, as a float. Raises ValueError for one out of range.

    The samplers compute in float32. A number that is 0 there, or may be, must be 0 everywhere.
    """
    normal = torch.finfo(torch.float32)
    number = float(value) if isinstance(value, Real) else math.nan
    if not normal.tiny <= number <= normal.max and not (or_zero and number == 0):
        zero = "0, or " if or_zero else ""
        raise ValueError(f"`{name}` must be {zero}positive and a normal float32, got {value!r}")
    return number


def digest_of(*tensors: Tensor) -> str:
    """SHA-256 of the values of tensors."""
    digest = hashlib.sha256()
    for tensor in tensors:
        digest.update(tensor.cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def checked_shape(count: int, channels: int, height: int, width: int) -> tuple[int, int, int, int]:
    """The shape of images to draw; ValueError for one that no network or no memory here has."""
    for name, value in (("height", height), ("width", width)):
        if value < 4 or value % 4:
            raise ValueError(f"{name} must be a positive multiple of 4, got {value}")
    shape = (count, channels, height, width)
    needed, memory = 4 * math.prod(shape), memory_bytes()
    if needed > memory:
        raise ValueError(
            f"{count:,} images take {needed:,} bytes, and the machine has {memory:,}: draw fewer "
            "at a time, or into a folder of shards"
        )
    return shape
