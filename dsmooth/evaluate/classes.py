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
from ..progress import Progress, progress_of
from .batches import check_images, nats_of_images
from .likelihood import standard_error


@dataclass(frozen=True, eq=False)
class Classification:
    """log p(x | label) of every image (rows) and class (columns): (N, K) float64, nats.

    For a pair a bound on it. labels: (N,), the true ones. log_prior: (K,), log p(label).
    dimensions: d, sub-pixels of an image.
    """

    log_likelihoods: Tensor
    labels: Tensor
    log_prior: Tensor
    dimensions: int

    @property
    def log_joint(self) -> Tensor:
        """log p(x, label): (N, K). The likeliest class of an image has the largest."""
        return self.log_likelihoods + self.log_prior

    @property
    def accuracy(self) -> float:
        """The fraction of images whose likeliest class is the true one."""
        return float(self._right.mean())

    @property
    def accuracy_error(self) -> float | None:
        """The standard error of the accuracy, over images."""
        return standard_error(self._right)

    @property
    def bits_given_class(self) -> float:
        """The mean of -log2 p(x | true label) / d."""
        return self._bits_per_dim(self.log_likelihoods.gather(1, self.labels[:, None]))

    @property
    def bits_of_mixture(self) -> float:
        """The mean of -log2 p(x) / d by the mixture of the classes, which the model draws from."""
        return self._bits_per_dim(self.log_joint.logsumexp(1))

    @property
    def _right(self) -> Tensor:
        return (self.log_joint.argmax(1) == self.labels).double()

    def _bits_per_dim(self, nats: Tensor) -> float:
        return -float(nats.mean()) / (self.dimensions * math.log(2))


@torch.no_grad()
def classify(
    model: PixelCNNpp | SmoothedPair,
    dataset: ImageDataset,
    *,
    limit: int | None = None,
    n_noise: int = 1,
    batch_size: int = 100,
    seed: int = 0,
    progress: bool | Progress = False,
) -> Classification:
    """Classify the first `limit` images (all by default) by the likelihoods of their classes.

    model: a model without context, with exact log p(x | label); or a pair, at least one of whose
    models has classes. A pair is judged by its importance-weighted bound from `n_noise` draws of
    x~, the same noise for all classes. seed: decides the noise. progress: as in `score_pair`.
    Raises ValueError for a model or data without classes, and as `score_pair` does.
    """
    pair: SmoothedPair | None = None
    if isinstance(model, SmoothedPair):
        pair, network, classes = model, model.noisy, model.classes
    else:
        network = in_evaluation(model)
        classes = model.config.classes
    if classes is None:
        raise ValueError("only a model with classes classifies: this one has none")
    check_images(model, dataset)
    dataset = dataset.first(limit)
    labels, n_classes = dataset.labels_of(classes.names), len(classes.names)

    def nats_of(x: Tensor, _: Tensor | None, first: int, number: int) -> dict[str, Tensor]:
        label = torch.full((len(x),), number, device=x.device)
        if pair is None:
            return {"nats": network.log_prob(x, label=label)}
        bound = pair.elbo(
            x, label=label, n_noise=n_noise, importance_weighted=True, seed=seed, first_index=first
        )
        return {"nats": bound}

    with progress_of(progress, "classifying", len(dataset)) as done:
        rows = nats_of_images(nats_of, dataset, network, labels, batch_size, done, rows=n_classes)
    nats = rows["nats"].mT.contiguous()
    prior = log_prior(classes)
    dimensions = dataset.images[0].numel()
    return Classification(nats, labels, prior, dimensions)
