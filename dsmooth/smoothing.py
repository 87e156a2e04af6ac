"""Smoothing distributions q(x~ | x): independent noise of one scale on every pixel."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from .config import SmoothingKind
from .fields import check_tensor
from .functional.device_words import device_words
from .nn.images import check_images
from .philox import Stream, draw_seed, to_uniform


@dataclass(frozen=True)
class Smoothing(ABC):
    """x~ = x + noise, where the noise of the pixels is independent and identically distributed.

    scale: in units of pixel values in [-1, 1]. Raises ValueError unless positive and finite.
    """

    kind: ClassVar[SmoothingKind]
    scale: float
    stream: Stream = field(default=Stream.SMOOTHING, repr=False)
    """Which stream of the random generator the noise comes from."""

    def __post_init__(self) -> None:
        if not 0 < self.scale < math.inf:
            raise ValueError(f"scale must be positive and finite, got {self.scale}")

    @abstractmethod
    def quantile(self, u: Tensor) -> Tensor:
        """Inverse cumulative distribution function of the noise at `u`, of any shape."""

    @abstractmethod
    def log_density(self, noise: Tensor, dtype: torch.dtype | None = None) -> Tensor:
        """Log density at each element of `noise`, in nats. dtype: that of the two images whose
        difference is the noise; by default the noise's."""

    @abstractmethod
    def entropy(self, d: int) -> float:
        """Differential entropy of the noise of d pixels, in nats."""

    def sample(
        self,
        x: Tensor,
        *,
        seed: int | None = None,
        first_index: int | Tensor | None = None,
        repeat: int = 0,
    ) -> Tensor:
        """Draw x~ for x (B, C, H, W); same shape, dtype and device.

        Each call draws new noise from torch's generator, unless `seed` or `first_index` is given
        (the other one is then 0): the noise of row b is then a pure function of
        (seed, first_index + b, repeat). first_index: a number, or an int64 scalar tensor on x's
        device. repeat: numbers the draws for the same image. Raises ValueError for numbers out of
        range, TypeError for integer tensors and numpy arrays.
        """
        check_images("x", x)
        fresh = seed is None and first_index is None
        n, d = x.shape[0], math.prod(x.shape[1:])
        words = device_words(
            n,
            -(-d // 4),
            seed=draw_seed(x.device) if fresh else seed or 0,
            first_index=0 if first_index is None else first_index,
            stream=self.stream,
            repeat=repeat,
            device=x.device,
        )
        u = to_uniform(words).flatten(1)[:, :d].view(x.shape)
        return x + self.quantile(u).to(x.dtype)

    def log_prob(self, x_tilde: Tensor, x: Tensor) -> Tensor:
        """log q(x~ | x) of two batches (B, C, H, W): (B,), in nats, in float32 or float64."""
        check_tensor("x_tilde", x_tilde, tuple(x.shape))
        common = torch.promote_types(x_tilde.dtype, x.dtype)
        exact = torch.promote_types(common, torch.float32)
        noise = x_tilde.to(exact) - x.to(exact)
        return self.log_density(noise, common).flatten(1).sum(1)


@dataclass(frozen=True)
class GaussianSmoothing(Smoothing):
    """N(0, scale**2) noise, the paper's choice (Meng et al., ICLR 2021)."""

    kind: ClassVar[SmoothingKind] = "gaussian"

    def quantile(self, u: Tensor) -> Tensor:
        return self.scale * torch.special.ndtri(u)

    def log_density(self, noise: Tensor, dtype: torch.dtype | None = None) -> Tensor:
        return -0.5 * (noise / self.scale) ** 2 - math.log(self.scale * math.sqrt(2 * math.pi))

    def entropy(self, d: int) -> float:
        return d * (0.5 * math.log(2 * math.pi * math.e) + math.log(self.scale))


@dataclass(frozen=True)
class LaplaceSmoothing(Smoothing):
    """Laplace noise with density exp(-|noise| / scale) / (2 scale)."""

    kind: ClassVar[SmoothingKind] = "laplace"

    def quantile(self, u: Tensor) -> Tensor:
        centred = u - 0.5
        return -self.scale * centred.sign() * torch.log1p(-2 * centred.abs())

    def log_density(self, noise: Tensor, dtype: torch.dtype | None = None) -> Tensor:
        return -noise.abs() / self.scale - math.log(2 * self.scale)

    def entropy(self, d: int) -> float:
        return d * (1 + math.log(2) + math.log(self.scale))


@dataclass(frozen=True)
class UniformSmoothing(Smoothing):
    """Uniform noise on [-scale, scale]."""

    kind: ClassVar[SmoothingKind] = "uniform"

    def quantile(self, u: Tensor) -> Tensor:
        return self.scale * (2 * u - 1)

    def log_density(self, noise: Tensor, dtype: torch.dtype | None = None) -> Tensor:
        # By rounding, (x + noise) - x can leave the interval by a few units in the last place.
        slack = 8 * torch.finfo(dtype or noise.dtype).eps * max(1.0, self.scale)
        inside = noise.abs() <= self.scale + slack
        return torch.where(inside, -math.log(2 * self.scale), -math.inf).to(noise.dtype)

    def entropy(self, d: int) -> float:
        return d * (math.log(2) + math.log(self.scale))


SMOOTHINGS: dict[str, type[Smoothing]] = {
    cls.kind: cls for cls in (GaussianSmoothing, LaplaceSmoothing, UniformSmoothing)
}
