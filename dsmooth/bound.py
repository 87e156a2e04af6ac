"""The lower bound on log p(x) by a noisy model and a denoiser (docs/math.md, sections 5 and 8)."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from .fields import check_number
from .nn import PixelCNNpp
from .nn.gradients import class_gradient

# Classes of each draw that a bound sums over by default, and passes of a network that choosing them
# takes, at least.
TOP_CLASSES, GRADIENT_PASSES = 3, 2


def log_mean_exp(log_weights: Tensor) -> Tensor:
    """log of the mean weight of the draws: (R, B) -> (B,). Burda et al. (ICLR 2016)."""
    return torch.logsumexp(log_weights, dim=0) - math.log(len(log_weights))


def bound_terms(
    models: tuple[PixelCNNpp, PixelCNNpp],
    x: Tensor,
    x_tilde: Tensor,
    label: Tensor | int | None,
    log_prior: Tensor,
    top_classes: int | None = TOP_CLASSES,
    denoiser_terms: Callable[[Tensor | int | None], dict[str, Tensor]] | None = None,
) -> dict[str, Tensor]:
    """log p(x~), "noisy", and log p(x | x~), "denoiser": each (B,), nats.

    models: the noisy model and the denoiser, in evaluation mode. Without a label the terms are of
    the mixture of the classes, which `likely_classes` chooses. log_prior: of each class,
    (n_classes,). denoiser_terms: a function of a label that gives other terms in place of
    "denoiser". The terms have gradients.
    """
    noisy, denoiser = models
    labels, log_p = [label], x.new_zeros(1, len(x))  # log p(class), of a given label 0
    if label is None and len(log_prior):
        classes = likely_classes(models, x, x_tilde, log_prior, top_classes)
        labels, log_p = [*classes.unbind()], log_prior[classes]

    def noisy_terms(label: Tensor | int | None) -> dict[str, Tensor]:
        return {"noisy": noisy.log_prob(x_tilde, label=label)}

    def image_terms(label: Tensor | int | None) -> dict[str, Tensor]:
        return {"denoiser": denoiser.log_prob(x, x_tilde, label)}

    terms: dict[str, Tensor] = {}
    for model, terms_of in ((noisy, noisy_terms), (denoiser, denoiser_terms or image_terms)):
        if not model.config.n_classes:
            terms |= terms_of(None)
            continue
        rows = [terms_of(label) for label in labels]
        joint = {name: log_p + torch.stack([row[name] for row in rows]) for name in rows[0]}
        terms |= {name: nats.logsumexp(0) for name, nats in joint.items()}
        if model is noisy:
            log_p = joint["noisy"] - terms["noisy"]  # log p(class | x~)
    return terms


def likely_classes(
    models: tuple[PixelCNNpp, PixelCNNpp],
    x: Tensor,
    x_tilde: Tensor,
    log_prior: Tensor,
    count: int | None,
) -> Tensor:
    """`count` classes of each image that probably contribute most to its weight: (count, B).

    They have the largest derivatives of log p(x~ | vector) by the one-hot vector of the class, at
    the mean of the prior, which lies between the vectors that any model with classes was trained
    with; of a noisy model without classes, those of log p(x | x~, vector). All classes, in order,
    if count is None or if the gradient and `count` passes take as long.
    """
    noisy, denoiser = models
    if count is not None:
        check_number("top_classes", count)
    if count is None or count + GRADIENT_PASSES >= len(log_prior):
        return torch.arange(len(log_prior), device=x.device)[:, None].expand(-1, len(x))
    mean = log_prior.exp().expand(len(x), -1)
    if noisy.config.n_classes:
        gradient = class_gradient(noisy, mean, x_tilde)
    else:
        gradient = class_gradient(denoiser, mean, x, x_tilde)
    return (log_prior + gradient).topk(count).indices.mT
