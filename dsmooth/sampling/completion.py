"""Completions of images, each chosen among several draws (docs/math.md, sections 3 and 4).

The samplers draw a missing pixel given the pixels before it. They leave out the probability of the
known pixels, given the pixels drawn before them: that is the weight of a draw. One of M draws,
taken in proportion to its weight, comes from the conditional distribution as M grows.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ..functional import logistic_mixture_log_prob
from ..nn import PixelCNNpp
from ..philox import Stream, image_words, seed_from, to_uniform
from ..pictures import is_diverged
from . import cached
from .request import AUTO, Execution, Progress, Request, split


def draw_completions(
    model: Any,
    request: Request,
    size: tuple[int, int],
    candidates: int,
    execution: Execution = AUTO,
    progress: Progress | None = None,
) -> Tensor:
    """The images (count, C, H, W) of a request with known pixels, each one of `candidates` draws.

    model: a `SmoothedPair`, or a network without context. The first candidate is
    the image that is drawn without others.
    """
    seed = request.seed
    where: dict[str, Any] = {"first_index": request.first_index, "stream": Stream.CANDIDATE}
    for i, own_progress in enumerate(split(progress, candidates)):
        own = replace(request, seed=seed_from(seed, i, Stream.CANDIDATE)) if i else request
        x, log_weight = draw_weighted(model, own, size, execution, own_progress)
        words = image_words(request.count, 1, seed=seed, repeat=i + 1, **where)
        # The largest of log-weights with Gumbel noise is a draw in proportion to the weights.
        key = log_weight - to_uniform(words)[:, 0, 0].to(log_weight).log().neg().log()
        # A diverged draw is taken where all diverged: a pair's is NaN, with a weight all the same.
        key = key.masked_fill(is_diverged(x) | key.isnan(), -torch.inf)
        if i == 0:
            taken, best = x, key
        better = key > best
        taken = torch.where(better[:, None, None, None], x, taken)
        best = torch.maximum(best, key)
    return taken


@torch.no_grad()
def draw_weighted(
    model: Any,
    request: Request,
    size: tuple[int, int],
    execution: Execution = AUTO,
    progress: Progress | None = None,
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
        given = [each if each is None else each.to(network.head.bias) for each in (x, context)]
        params = network(*given, label)
        return of_known(logistic_mixture_log_prob(x, params, **network.config.mixture))

    if isinstance(model, PixelCNNpp):
        x = cached.draw(model, request, size, None, progress, execution)
        return x, log_prob(model, x)
    first, second = split(progress, 2)
    noisy = model.noisy_request(request)
    x_tilde = cached.draw(model.noisy, noisy, size, None, first, execution)
    x = model.draw_clean(x_tilde, request, execution, second)
    noise = of_known(model.smoothing.log_density(x_tilde - x).sum(1))
    return x, log_prob(model.noisy, x_tilde) + log_prob(model.denoiser, x, x_tilde) - noise
