"""Steps between the noise levels of a ladder (docs/math.md, section 7)."""

from __future__ import annotations

import math

from torch import Tensor

from ..philox import Stream, image_words
from ..smoothing import GaussianSmoothing


def seed_of_rung(seed: int, rung: int, repeat: int = 0) -> int:
    """The seed of what is drawn on a rung above the lowest, which has rung 0 and `seed` itself.

    The first two words of Philox at counter (0, rung, 0, LADDER and repeat).
    """
    if rung == 0:
        return seed
    words = image_words(1, 1, seed=seed, first_index=rung, stream=Stream.LADDER, repeat=repeat)
    low, high, *_ = words[0, 0].tolist()
    return int(low | high << 32)


class Step:
    """The noisy image between an image x and a noisier one: q(x_low | x, x_high).

    low, high: scales of the noise, low < high. It is Gaussian, its mean between the two.
    """

    def __init__(self, low: float, high: float) -> None:
        self.weight = (low / high) ** 2
        self.noise = GaussianSmoothing(low * math.sqrt(1 - self.weight), Stream.LADDER)

    def mean(self, x: Tensor, x_high: Tensor) -> Tensor:
        """x + low**2 / high**2 * (x_high - x), (B, C, H, W)."""
        return x + self.weight * (x_high - x)

    def down(self, x: Tensor, x_high: Tensor, *, seed: int, first_index: int = 0) -> Tensor:
        """Draw x_low; row b is that of image first_index + b."""
        return self.noise.sample(self.mean(x, x_high), seed=seed, first_index=first_index)

    def log_prob(self, x_low: Tensor, x: Tensor, x_high: Tensor) -> Tensor:
        """log q(x_low | x, x_high): (B,), nats."""
        return self.noise.log_prob(x_low, self.mean(x, x_high))
