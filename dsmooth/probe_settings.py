"""The settings of linear probes: a frozen dataclass, as those of models and training."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal, get_args

from msgspec import Meta

from .config import Natural, Positive
from .fields import check, check_number

Block = Literal["up0", "up1", "up2", "down0", "down1", "down2"]
BLOCKS: tuple[Block, ...] = get_args(Block)
Pooling = Literal["flat", "mean"]


@dataclass(frozen=True)
class ProbeSettings:
    """The input of linear probes and the length of their training.

    Raises ValueError for a field out of range.
    """

    blocks: Annotated[tuple[Block, ...], Meta(min_length=1)] = BLOCKS
    """Blocks that are probed."""
    stream: Literal["ul", "u", "both"] = "ul"
    """Which stream of a block: ul, u, or both."""
    pooling: Pooling | Positive = "flat"
    """flat: every value of the map is a feature, as in the paper; mean: each filter's average; a
    number n: averages over n x n parts of the map."""
    together: Natural = 4
    """One more probe sees both streams of all the blocks, averaged over n x n parts; 0 for none."""
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
