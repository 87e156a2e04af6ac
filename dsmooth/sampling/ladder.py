"""Two-step sampling down a ladder of noise levels (docs/math.md, section 7)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from ..philox import Stream, seed_from
from ..smoothing import GaussianSmoothing
from .cached import Sampler
from .request import Progress, Request, share_of_progress


def seed_of_rung(seed: int, rung: int, repeat: int = 0) -> int:
    """The seed of draws on a rung above the lowest, which has rung 0 and `seed` itself."""
    return seed_from(seed, rung, Stream.LADDER, repeat) if rung else seed


class Step:
    """q(x_low | x, x_high) of the noise scales low < high: Gaussian, its mean between the two."""

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


class Ladder:
    """Draws x~ of the highest level, then an image and x~ of the next level, and so on, at last x.

    rungs: a `SmoothedPair` of each level, which fall.
    """

    def __init__(self, rungs: Sequence[Any]) -> None:
        self.rungs = rungs

    def draw(self, request: Request, sampler: Sampler, progress: Progress | None = None) -> Tensor:
        """The images of a request."""
        request = self._labelled(request)
        # One network for x~, and one for every image that is drawn from a noisy one.
        first = 1 / (len(self.rungs) + (request.method == "two-step"))
        x_tilde = self.rungs[0].draw_noisy(request, sampler, share_of_progress(progress, 0, first))
        return self.draw_clean(x_tilde, request, sampler, share_of_progress(progress, first, 1))

    def draw_clean(
        self,
        x_tilde: Tensor,
        request: Request,
        sampler: Sampler,
        progress: Progress | None = None,
    ) -> Tensor:
        """The image of each x~ (B, C, H, W) of the highest level."""
        request = self._labelled(request)
        steps = len(self.rungs) - 1
        parts = steps + (request.method == "two-step")
        for i, (high, low) in enumerate(pairwise(self.rungs)):
            above = replace(request, seed=seed_of_rung(request.seed, steps - i), method="two-step")
            share = share_of_progress(progress, i / parts, (i + 1) / parts)
            x = high.draw_clean(x_tilde, above, sampler, share)
            x_tilde = Step(low.smoothing.scale, high.smoothing.scale).down(
                x, x_tilde, seed=above.seed, first_index=request.first_index
            )
        share = share_of_progress(progress, steps / max(parts, 1), 1)
        return self.rungs[-1].draw_clean(x_tilde, request, sampler, share)

    def _labelled(self, request: Request) -> Request:
        """The request with one class of an image on all rungs, whose seeds differ."""
        n_classes, device = self.rungs[0].n_classes, self.rungs[0].device
        return replace(request, label=request.labels(n_classes, device)) if n_classes else request


def log_prob_of_noisy(
    pairs: Sequence[Any],
    x_tilde: Tensor,
    label: Tensor | None = None,
    *,
    seed: int = 0,
    first_index: int = 0,
    repeat: int = 0,
) -> Tensor:
    """log p(x~) of the lowest level of a ladder, or one draw of a lower bound on it: (B,), nats.

    pairs: a `SmoothedPair` of each level, which fall; with one level the number is exact. x~ climbs
    by independent noise; each step down is bounded with an image from the lower denoiser
    (docs/math.md, section 7). Row b is that of image first_index + b. The image is drawn and scored
    in float32: a bound needs both to be of one distribution.
    """
    total = x_tilde.new_zeros(x_tilde.shape[0])
    rising = [*reversed(pairs)]
    for rung, (low, high) in enumerate(pairwise(rising), 1):
        scales = low.smoothing.scale, high.smoothing.scale
        where: dict[str, Any] = {
            "seed": seed_of_rung(seed, rung, repeat),
            "first_index": first_index,
        }
        up = GaussianSmoothing(math.sqrt(scales[1] ** 2 - scales[0] ** 2), Stream.LADDER)
        x_high = up.sample(x_tilde, **where)
        own = low.label_for(low.denoiser, label)
        x = low.denoise(x_tilde, label=own, precision="float32", **where)
        total += high.denoiser_log_prob(x, x_high, label)
        total += Step(*scales).log_prob(x_tilde, x, x_high)
        total -= up.log_prob(x_high, x_tilde)
        with torch.autocast(x.device.type, enabled=False):
            total -= low.denoiser_log_prob(x, x_tilde, label)
        x_tilde = x_high
    return total + rising[-1].noisy_log_prob(x_tilde, label)
