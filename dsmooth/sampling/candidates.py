"""Completion by several draws of an image, of which one is taken by its weight.

The samplers draw a missing pixel given the pixels before it. The weight of a draw is what they left
out: the probability of the known pixels given what was drawn before them (docs/math.md, sections 3
and 4). To take one of M draws in proportion to their weights is exact as M grows.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ..functional import logistic_mixture_log_prob
from ..nn import PixelCNNpp
from ..philox import Stream, image_words, seed_from, to_uniform
from .cached import Sampler
from .request import KnownPixels, Progress, Request, share_of_progress


def draw_completions(
    model: Any,
    request: Request,
    sampler: Sampler,
    size: tuple[int, int],
    candidates: int,
    progress: Progress | None = None,
) -> Tensor:
    """The images (count, C, H, W) of a request with known pixels, each one of `candidates` draws.

    model: a `SmoothedPair` of one noise level, or a network without context. The first candidate is
    the image that is drawn without others.
    """
    seed, first_index, taken, best = request.seed, request.first_index, None, None
    where: dict[str, Any] = {"seed": seed, "first_index": first_index, "stream": Stream.CANDIDATE}
    for i in range(candidates):
        own = replace(request, seed=seed_from(seed, i, Stream.CANDIDATE)) if i else request
        share = share_of_progress(progress, i / candidates, (i + 1) / candidates)
        x, log_weight = draw_weighted(model, own, sampler, size, share)
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
    model: Any,
    request: Request,
    sampler: Sampler,
    size: tuple[int, int],
    progress: Progress | None = None,
) -> tuple[Tensor, Tensor]:
    """Images (B, C, H, W) of a request with known pixels, and their log-weights (B,), nats."""
    known = request.known
    assert known is not None  # completion has some
    if isinstance(model, PixelCNNpp):
        x = sampler.draw(model, request, size, progress=progress)
        label = request.labels(model.config.condition_size, x.device)
        return x, known_log_prob(model, x, known, label=label)
    half = share_of_progress(progress, 0, 0.5), share_of_progress(progress, 0.5, 1)
    x_tilde = model.draw_noisy(request, sampler, half[0])
    x = model.draw_clean(x_tilde, request, sampler, half[1])
    label = request.labels(model.n_classes, x.device)
    noise = model.smoothing.log_density(x_tilde - x).sum(1)
    own = [model.label_for(network, label) for network in (model.noisy, model.denoiser)]
    log_weight = known_log_prob(model.noisy, x_tilde, known, label=own[0])
    log_weight += known_log_prob(model.denoiser, x, known, x_tilde, own[1])
    return x, log_weight - torch.where(known.mask, noise, 0).double().sum((1, 2))


def known_log_prob(
    model: PixelCNNpp,
    x: Tensor,
    known: KnownPixels,
    context: Tensor | None = None,
    label: Tensor | None = None,
) -> Tensor:
    """log-probability of the known pixels of x, each given all pixels before it: (B,), nats."""
    params = model(x, context, label)
    nats = logistic_mixture_log_prob(x, params, **model.config.mixture)
    return torch.where(known.mask, nats, 0).double().sum((1, 2))
