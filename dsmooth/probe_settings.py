"""The settings of linear probes: a frozen dataclass, as those of models and training."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from .config import Positive
from .fields import check, check_number


@dataclass(frozen=True)
class ProbeSettings:
    """The input of linear probes and the length of their training.

    Raises ValueError for a field out of range.
    """

    input: Literal["noisy", "clean"] = "noisy"
    """noisy: the networks see only x~, as in the paper; clean: x (the denoiser x given x~)."""
    train_images: Positive | None = None
    """Training images, the first ones; by default all."""
    test_images: Positive | None = None
    """Test images, the first ones; by default all."""
    epochs: Positive = 20
    """Passes of a probe over the training images."""
    seed: int = 0
    """Decides the noise, the order of images and the untrained networks."""

    def __post_init__(self) -> None:
        check(self)
        check_number("seed", self.seed, 0, 2**64 - 1)
