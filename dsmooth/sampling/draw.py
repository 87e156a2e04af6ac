"""A draw: which images, and how they are drawn.

It is made and checked where a user asks for images; everything behind takes a `Draw`.
"""

from __future__ import annotations

import math
import secrets
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from numbers import Real
from typing import Any, get_args

import torch
from torch import Tensor

from ..config import Method, Precision, Score, check_whole
from ..philox import split_seed
from .known import KnownPixels
from .label import Label, check_count, described, labels_of

# Called with the fraction that is done.
Progress = Callable[[float], None]


@dataclass(frozen=True)
class Draw:
    """Images first_index .. first_index + count - 1 of the stream that `seed` names.

    method, score: of a pair, see `SmoothedPair.sample`. temperature: of every draw. threads: on the
    CPU, None for torch's setting. max_slice: images that a thread (a thread block) draws at a time
    at most, None for a size that suits the device. device: where the networks go to draw, None for
    where they lie. precision: that the cached sampler computes in; "auto" is bfloat16 on a CUDA
    device and float32 on the CPU. known: pixels that are kept, of as many images. label: for models
    with classes. A number is the class of all images, "each" makes image i one of class i modulo
    the number of classes, and a tensor has a class (count,) int64, or weights of classes (count,
    n_classes), for every image. levels: scales of noise of a pair's ladder, falling; None for its
    highest alone.
    Raises ValueError, naming the field, for one out of range.
    """

    count: int
    seed: int = 0
    first_index: int = 0
    method: Method = "two-step"
    score: Score = "full"
    temperature: float = 1.0
    threads: int | None = None
    max_slice: int | None = None
    device: str | None = None
    precision: Precision = "auto"
    known: KnownPixels | None = None
    label: Label = None
    levels: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        check_whole(self, ("count", "seed", "first_index", "threads", "max_slice"))
        if self.count < 1:
            raise ValueError(f"the number of images must be at least 1, got {self.count}")
        split_seed(self.seed)
        if self.first_index < 0 or self.first_index + self.count > 2**63 - 1:
            raise ValueError(f"first_index must lie in 0 .. 2**63 - 1, got {self.first_index}")
        for name, allowed in (
            ("method", Method),
            ("score", Score),
            ("precision", Precision),
        ):
            if getattr(self, name) not in get_args(allowed):
                raise ValueError(
                    f"{name} must be one of {', '.join(get_args(allowed))}, "
                    f"got {getattr(self, name)!r}"
                )
        if not isinstance(self.temperature, Real) or not 0 < self.temperature < math.inf:
            raise ValueError(f"temperature must be positive, got {self.temperature!r}")
        for name in ("threads", "max_slice"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        if self.known is not None and len(self.known.mask) != self.count:
            raise ValueError(
                f"known must be of {self.count} images, got {len(self.known.mask)} images"
            )
        check_count(self.label, self.count)

    def labels(self, n_classes: int, device: torch.device) -> Tensor | None:
        """The label of every image for a model of `n_classes`, which lies on `device`.

        (count,) int64 or (count, n_classes) floating point; None for a model without classes.
        Raises ValueError or TypeError for labels that are missing, superfluous or not its classes.
        """
        return labels_of(self.label, n_classes, self.first_index, self.count, device)

    def part(self, offset: int, count: int) -> Draw:
        """The `count` images behind the first `offset` ones, drawn the same way."""
        known = None if self.known is None else self.known.part(offset, count)
        label = self.label
        if isinstance(label, Tensor):
            label = label[offset : offset + count]
        first = self.first_index + offset
        return replace(self, first_index=first, count=count, known=known, label=label)

    def how(self) -> dict[str, Any]:
        """All that decides an image beside its number and the weights, as JSON."""
        how: dict[str, Any] = {
            "seed": self.seed,
            "method": self.method,
            "score": self.score,
            "temperature": self.temperature,
        }
        if self.label is not None:
            how["label"] = described(self.label)
        if self.levels is not None:
            how["levels"] = list(self.levels)
        return how if self.known is None else {**how, "known_sha256": self.known.digest()}


def chosen_seed(seed: int | None) -> int:
    """`seed`; for None one from the operating system, which a line on stderr reports."""
    if seed is not None:
        return seed
    seed = secrets.randbits(32)
    print(f"dsmooth: drew seed {seed}; seed={seed} gives the same images again", file=sys.stderr)
    return seed


def check_size(size: tuple[int, int]) -> None:
    """Raise ValueError for an image size (H, W) that no network has."""
    for name, value in zip(("height", "width"), size, strict=True):
        if value < 4 or value % 4:
            raise ValueError(f"{name} must be a positive multiple of 4, got {value}")


def share_of_progress(progress: Progress | None, first: float, last: float) -> Progress | None:
    """`progress` for a part of the work that begins at the fraction `first` and ends at `last`."""
    if progress is None:
        return None
    return lambda fraction: progress(first + (last - first) * fraction)
