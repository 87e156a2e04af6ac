"""Classification by Bayes' rule with a class-conditional model (docs/math.md, section 8)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ..data import ImageDataset
from ..nn import PixelCNNpp
from ..nn.condition import log_prior
from ..nn.weights import in_evaluation
from ..pair import SmoothedPair
from .likelihood import measured, nats_of_images, standard_error


@dataclass(frozen=True, eq=False)
class Classification:
    """Images classified by the likelihoods of their classes, log p(x | label).

    log_likelihoods: of every image (rows) and class (columns), (N, K) float64, nats; for a pair a
    bound. accuracy, error: of the likeliest class. bits_given_class, bits_of_mixture: the means of
    -log2 p(x | true label) / d and -log2 p(x) / d, by the mixture that the model draws from.
    """

    log_likelihoods: Tensor
    accuracy: float
    error: float | None
    bits_given_class: float
    bits_of_mixture: float


@torch.no_grad()
def classify(
    model: PixelCNNpp | SmoothedPair,
    dataset: ImageDataset,
    *,
    n_noise: int = 1,
    batch_size: int = 100,
    seed: int = 0,
) -> Classification:
    """Classify images by Bayes' rule, with the shares of the classes in training as the prior.

    model: a model without context, with exact log p(x | label); or a pair, at least one of whose
    models has classes. A pair is judged by its importance-weighted bound from `n_noise` draws of
    x~, the same noise for all classes. seed: decides the noise.
    Raises ValueError for a model or data without classes, and as `score_pair` does.
    """
    model, classes = in_evaluation(model), model.classes
    labels = dataset.labels_for(classes)
    if classes is None or labels is None:
        raise ValueError("only a model with classes classifies: this one has none")

    def nats_of(x: Tensor, _: object, first: int, number: int) -> dict[str, Tensor]:
        if isinstance(model, PixelCNNpp):
            return {"nats": model.log_prob(x, label=number)}
        choices = {"n_noise": n_noise, "seed": seed, "first_index": first}
        return {"nats": model.elbo(x, label=number, importance_weighted=True, **choices)}

    images = measured(model, dataset, batch_size)
    rows = nats_of_images(images, nats_of, rows=len(classes.names))
    nats = rows["nats"].mT.contiguous()
    joint, scale = nats + log_prior(classes), -dataset.images[0].numel() * math.log(2)
    right = (joint.argmax(1) == labels).double()
    return Classification(
        log_likelihoods=nats,
        accuracy=float(right.mean()),
        error=standard_error(right),
        bits_given_class=float(nats.gather(1, labels[:, None]).mean()) / scale,
        bits_of_mixture=float(joint.logsumexp(1).mean()) / scale,
    )
