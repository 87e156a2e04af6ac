"""Two-step sampling down a ladder of noise levels, and completions chosen among several draws.

The samplers draw a missing pixel given the pixels before it. The weight of a draw is what they left
out: the probability of the known pixels given what was drawn before them. To take one of M draws in
proportion to their weights is exact as M grows. Source: docs/math.md, sections 3, 4 and 7.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from ..config import Method
from ..functional import logistic_mixture_log_prob
from ..nn import PixelCNNpp
from ..philox import Stream, image_words, seed_from, to_uniform
from ..smoothing import GaussianSmoothing
from .cached import Sampler
from .request import Request


def seed_of_rung(seed: int, rung: int, repeat: int = 0) -> int:
    """The seed of draws on a rung above the lowest, which has rung 0 and `seed` itself."""
    return seed_from(seed, rung, Stream.LADDER, repeat) if rung else seed


def step_down(
    low: float, high: float, x: Tensor, x_high: Tensor
) -> tuple[Tensor, GaussianSmoothing]:
    """q(x_low | x, x_high) of noise scales low < high: its mean, (B, C, H, W), and the noise."""
    weight = (low / high) ** 2
    noise = GaussianSmoothing(low * math.sqrt(1 - weight), Stream.LADDER)
    return x + weight * (x_high - x), noise


class Ladder:
    """Draws x~ of the highest level, then an image and x~ of the next level, and so on, at last x.

    rungs: a `SmoothedPair` of each level, which fall; one alone is two-step sampling.
    """

    def __init__(self, rungs: Sequence[Any]) -> None:
        self.rungs = rungs

    def sweeps(self, method: Method) -> int:
        """Draws of a network: one for x~, and one for each image drawn from a noisy one."""
        return len(self.rungs) + (method == "two-step")

    def draw(self, request: Request, sampler: Sampler) -> Tensor:
        """The images of a request."""
        x_tilde = self.rungs[0].draw_noisy(self._labelled(request), sampler)
        return self.draw_clean(x_tilde, request, sampler)

    def draw_clean(self, x_tilde: Tensor, request: Request, sampler: Sampler) -> Tensor:
        """The image of each x~ (B, C, H, W) of the highest level."""
        request, steps = self._labelled(request), len(self.rungs) - 1
        for i, (high, low) in enumerate(pairwise(self.rungs)):
            above = replace(request, seed=seed_of_rung(request.seed, steps - i), method="two-step")
            x = high.draw_clean(x_tilde, above, sampler)
            mean, noise = step_down(low.smoothing.scale, high.smoothing.scale, x, x_tilde)
            x_tilde = noise.sample(mean, seed=above.seed, first_index=request.first_index)
        return self.rungs[-1].draw_clean(x_tilde, request, sampler)

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

    pairs: a `SmoothedPair` of each level, which fall. x~ climbs by independent noise; each step
    down is bounded with an image from the lower denoiser, drawn and scored in float32: a bound
    needs both to be of one distribution.
    """
    total = x_tilde.new_zeros(x_tilde.shape[0])
    rising = [*reversed(pairs)]
    for rung, (low, high) in enumerate(pairwise(rising), 1):
        scales = low.smoothing.scale, high.smoothing.scale
        own_seed = seed_of_rung(seed, rung, repeat)
        where: dict[str, Any] = {"seed": own_seed, "first_index": first_index}
        up = GaussianSmoothing(math.sqrt(scales[1] ** 2 - scales[0] ** 2), Stream.LADDER)
        x_high = up.sample(x_tilde, **where)
        own = low.label_for(low.denoiser, label)
        x = low.denoise(x_tilde, label=own, precision="float32", **where)
        total += high.denoiser_log_prob(x, x_high, label)
        mean, noise = step_down(*scales, x, x_high)
        total += noise.log_prob(x_tilde, mean)
        total -= up.log_prob(x_high, x_tilde)
        with torch.autocast(x.device.type, enabled=False):
            total -= low.denoiser_log_prob(x, x_tilde, label)
        x_tilde = x_high
    return total + rising[-1].noisy_log_prob(x_tilde, label)


def draw_completions(
    model: Any,
    request: Request,
    sampler: Sampler,
    size: tuple[int, int],
    candidates: int,
) -> Tensor:
    """The images (count, C, H, W) of a request with known pixels, each one of `candidates` draws.

    model: a `SmoothedPair` of one noise level, or a network without context. The first candidate is
    the image that is drawn without others.
    """
    seed, first_index, taken, best = request.seed, request.first_index, None, None
    where: dict[str, Any] = {"seed": seed, "first_index": first_index, "stream": Stream.CANDIDATE}
    for i in range(candidates):
        own = replace(request, seed=seed_from(seed, i, Stream.CANDIDATE)) if i else request
        x, log_weight = draw_weighted(model, own, sampler, size)
        words = image_words(request.count, 1, repeat=i + 1, **where)
        # The largest of log-weights with Gumbel noise is a draw in proportion to the weights.
        score = log_weight - to_uniform(words)[:, 0, 0].to(log_weight).log().neg().log()
        if taken is None or best is None:
            taken, best = x, score
        better = score > best
        taken = torch.where(better[:, None, None, None], x, taken)
        best = torch.where(better, score, best)
    assert taken is not None  # there is a candidate
    return taken


@torch.no_grad()
def draw_weighted(
    model: Any, request: Request, sampler: Sampler, size: tuple[int, int]
) -> tuple[Tensor, Tensor]:
    """Images (B, C, H, W) of a request with known pixels, and their log-weights (B,), nats."""
    assert request.known is not None  # completion has some
    mask = request.known.mask

    def of_known(nats: Tensor) -> Tensor:
        return torch.where(mask, nats, 0).double().sum((1, 2))

    def log_prob(network: PixelCNNpp, x: Tensor, context: Tensor | None = None) -> Tensor:
        """log-probability of the known pixels, each given all pixels before it."""
        n_classes = network.config.condition_size
        label = request.labels(n_classes, x.device) if n_classes else None
        params = network(x, context, label)
        return of_known(logistic_mixture_log_prob(x, params, **network.config.mixture))

    if isinstance(model, PixelCNNpp):
        x = sampler.draw(model, request, size)
        return x, log_prob(model, x)
    x_tilde = model.draw_noisy(request, sampler)
    x = model.draw_clean(x_tilde, request, sampler)
    noise = of_known(model.smoothing.log_density(x_tilde - x).sum(1))
    return x, log_prob(model.noisy, x_tilde) + log_prob(model.denoiser, x, x_tilde) - noise
