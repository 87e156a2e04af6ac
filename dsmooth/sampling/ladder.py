"""Two-step sampling, at one noise level or down a ladder of several (docs/math.md, section 7)."""

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
from . import cached
from .request import AUTO, Execution, Progress, Request, split


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


def draw_pair(
    rungs: Sequence[Any],
    request: Request,
    execution: Execution = AUTO,
    progress: Progress | None = None,
) -> Tensor:
    """The images of a request: x~ of the highest level, then an image and x~ of the next, ..., x.

    rungs: a `SmoothedPair` for each noise level, from the highest down; one alone is two-step
    sampling.
    """
    first, last, x_tilde = rungs[0], len(rungs) - 1, request.x_tilde
    if first.n_classes:  # one class of an image on all rungs, whose seeds differ
        request = replace(request, label=request.labels(first.n_classes, first.device))
    steps = split(progress, (x_tilde is None) + last + (request.method == "two-step"))
    if x_tilde is None:
        own = first.noisy_request(request)
        x_tilde = cached.draw(first.noisy, own, first.image_size, None, next(steps), execution)
    for i, (high, low) in enumerate(pairwise(rungs)):
        above = replace(request, seed=seed_of_rung(request.seed, last - i), method="two-step")
        x = high.draw_clean(x_tilde, above, execution, next(steps))
        mean, noise = step_down(low.smoothing.scale, high.smoothing.scale, x, x_tilde)
        x_tilde = noise.sample(mean, seed=above.seed, first_index=request.first_index)
    return rungs[-1].draw_clean(x_tilde, request, execution, next(steps, None))


def noise_terms(
    rungs: Sequence[Any], x: Tensor, label: Tensor | None, **where: Any
) -> tuple[Tensor, Tensor, Tensor]:
    """One draw of x~ ~ q(x~ | x) at the lowest noise level of a ladder, and its terms.

    rungs: as in `draw_pair`. where: seed, first_index and repeat, which decide the noise. Returns
    x~ (B, C, H, W), log p(x~) and -log q(x~ | x), each (B,), nats.
    """
    smoothing = rungs[-1].smoothing
    x_tilde = smoothing.sample(x, **where)
    noisy = log_prob_of_noisy(rungs, x_tilde, label, **where)
    return x_tilde, noisy, -smoothing.log_prob(x_tilde, x)


def log_weight(rungs: Sequence[Any], x: Tensor, label: Tensor | None, **where: Any) -> Tensor:
    """One draw's log-weight of images x, log p(x~) - log q(x~ | x) + log p(x | x~): (B,), nats.

    rungs, where: as in `noise_terms`. Without a label a pair with classes has the mean weight of
    all classes.
    """
    last = rungs[-1]
    labels: list[Tensor | None] = [label]
    if label is None and last.n_classes:
        labels = [each.expand(len(x)) for each in torch.arange(last.n_classes, device=x.device)]
    # A network without classes needs no second pass. Down a ladder log p(x~) is of both networks.
    of_noisy = labels if last.noisy.config.condition_size or len(rungs) > 1 else labels[:1]
    of_denoiser = labels if last.denoiser.config.condition_size else labels[:1]
    noise: list[Tensor] = []
    for each in of_noisy:
        x_tilde, noisy, smoothing = noise_terms(rungs, x, each, **where)
        noise.append(noisy + smoothing)
    clean = [last.denoiser_log_prob(x, x_tilde, each) for each in of_denoiser]
    return (torch.stack(noise) + torch.stack(clean)).logsumexp(0) - math.log(len(labels))


def log_prob_of_noisy(
    rungs: Sequence[Any],
    x_tilde: Tensor,
    label: Tensor | None = None,
    *,
    seed: int = 0,
    first_index: int = 0,
    repeat: int = 0,
) -> Tensor:
    """log p(x~) at the lowest level of a ladder, or one draw of a lower bound on it: (B,), nats.

    rungs: as in `draw_pair`. x~ climbs by independent noise. Each step down is bounded with an
    image from the lower denoiser. It is drawn and evaluated in float32, for a bound needs both to
    be of one distribution.
    """
    exact = torch.promote_types(x_tilde.dtype, torch.float32)
    total = x_tilde.new_zeros(x_tilde.shape[0], dtype=exact)
    rising = [*reversed(rungs)]
    for rung, (low, high) in enumerate(pairwise(rising), 1):
        scales = low.smoothing.scale, high.smoothing.scale
        own_seed = seed_of_rung(seed, rung, repeat)
        where: dict[str, Any] = {"seed": own_seed, "first_index": first_index}
        up = GaussianSmoothing(math.sqrt(scales[1] ** 2 - scales[0] ** 2), Stream.LADDER)
        x_high = up.sample(x_tilde, **where)
        own = low.label_for(low.denoiser, label)
        x = low.denoise(x_tilde, label=own, precision="float32", **where).to(x_tilde.dtype)
        total += high.denoiser_log_prob(x, x_high, label)
        mean, noise = step_down(*scales, x, x_high)
        total += noise.log_prob(x_tilde, mean)
        total -= up.log_prob(x_high, x_tilde)
        with torch.autocast(x.device.type, enabled=False):
            total -= low.denoiser_log_prob(x, x_tilde, label)
        x_tilde = x_high
    return total + rising[-1].noisy_log_prob(x_tilde, label)
