"""The lower bound on log p(x) by a noisy model and a denoiser (docs/math.md, sections 5 and 8)."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from .nn import PixelCNNpp
from .nn.gradients import class_gradient
from .smoothing import Smoothing

# Classes of each draw that a bound sums over by default, and passes of a network that choosing them
# takes, at least.
TOP_CLASSES, GRADIENT_PASSES = 3, 2


@dataclass(frozen=True, eq=False)
class Bound:
    """What a bound is computed by, as `SmoothedPair.bound` resolves it.

    noisy, denoiser: in evaluation mode. log_prior: log p(class) of each class, (n_classes,).
    top_classes: the classes of each draw that a sum has, all if the gradient that chooses them and
    their passes take as long.
    """

    noisy: PixelCNNpp
    denoiser: PixelCNNpp
    smoothing: Smoothing
    log_prior: Tensor
    top_classes: int


def log_mean_exp(log_weights: Tensor) -> Tensor:
    """log of the mean weight of the draws: (R, B) -> (B,). Burda et al. (ICLR 2016)."""
    return torch.logsumexp(log_weights, dim=0) - math.log(len(log_weights))


def log_weights(
    bound: Bound,
    x: Tensor,
    labels: Tensor | None,
    n_noise: int,
    seed: int | None,
    first_index: int | None,
) -> Tensor:
    """log p(x~) - log q(x~ | x) + log p(x | x~) of each draw of x~: (n_noise, B), nats."""
    smoothing, weights = bound.smoothing, []
    for i in range(n_noise):
        x_tilde = smoothing.sample(x, seed=seed, first_index=first_index, repeat=i)
        terms = bound_terms(bound, x, x_tilde, labels)
        weights.append(terms["noisy"] - smoothing.log_prob(x_tilde, x) + terms["denoiser"])
    return torch.stack(weights)


def bound_terms(
    bound: Bound,
    x: Tensor,
    x_tilde: Tensor,
    labels: Tensor | None,
    denoiser_terms: Callable[[Tensor | None], dict[str, Tensor]] | None = None,
) -> dict[str, Tensor]:
    """log p(x~), "noisy", and log p(x | x~), "denoiser": each (B,), nats.

    labels: (B,) int64. Without them the terms are of the mixture of the classes, which
    `likely_classes` chooses. denoiser_terms: a function of labels that gives other terms in place
    of "denoiser". The terms have gradients.
    """
    noisy, denoiser = bound.noisy, bound.denoiser
    classes, log_p = [labels], x.new_zeros(1, len(x))  # log p(class), of a given label 0
    if labels is None and len(bound.log_prior):
        likely = likely_classes(bound, x, x_tilde)
        classes, log_p = [*likely.unbind()], bound.log_prior[likely]

    def noisy_terms(labels: Tensor | None) -> dict[str, Tensor]:
        return {"noisy": noisy.nats(x_tilde, None, noisy.vectors(labels))}

    def image_terms(labels: Tensor | None) -> dict[str, Tensor]:
        return {"denoiser": denoiser.nats(x, x_tilde, denoiser.vectors(labels))}

    terms: dict[str, Tensor] = {}
    for model, terms_of in ((noisy, noisy_terms), (denoiser, denoiser_terms or image_terms)):
        if not model.config.n_classes:
            terms |= terms_of(None)
            continue
        rows = [terms_of(numbers) for numbers in classes]
        joint = {name: log_p + torch.stack([row[name] for row in rows]) for name in rows[0]}
        terms |= {name: nats.logsumexp(0) for name, nats in joint.items()}
        if model is noisy:
            log_p = joint["noisy"] - terms["noisy"]  # log p(class | x~)
    return terms


def likely_classes(bound: Bound, x: Tensor, x_tilde: Tensor) -> Tensor:
    """The classes of each image that probably contribute most to its weight: (top_classes, B).

    They have the largest derivatives of log p(x~ | vector) by the one-hot vector of the class, at
    the mean of the prior, which lies between the vectors that any model with classes was trained
    with; of a noisy model without classes, those of log p(x | x~, vector). All classes are in
    order.
    """
    noisy, log_prior = bound.noisy, bound.log_prior
    if bound.top_classes == len(log_prior):
        return torch.arange(len(log_prior), device=x.device)[:, None].expand(-1, len(x))
    mean = log_prior.exp().expand(len(x), -1)
    if noisy.config.n_classes:
        gradient = class_gradient(noisy, mean, x_tilde)
    else:
        gradient = class_gradient(bound.denoiser, mean, x, x_tilde)
    return (log_prior + gradient).topk(bound.top_classes).indices.mT
