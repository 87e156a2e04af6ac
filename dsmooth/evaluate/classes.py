"""Measures of classes: bits/dim and the Fréchet distance of each, and classification by Bayes' rule
with a class-conditional model (docs/math.md, section 8)."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..data import ImageDataset
from ..nn import PixelCNNpp
from ..nn.weights import in_evaluation
from ..pair import SmoothedPair
from .batches import check_dataset, nats_of_images
from .comparison import ShowProgress, collect_statistics, measure_images, no_progress
from .features import FeatureExtractor
from .frechet import bootstrap_error
from .likelihood import Scores, standard_error


@dataclass(frozen=True)
class ClassBits:
    """The first convention of `conventions`, of the images of one class."""

    label: int
    n_images: int
    value: float
    standard_error: float | None


def bits_by_class(scores: Scores, labels: Tensor) -> list[ClassBits]:
    """Bits/dim of each class that occurs. labels: (N,), of the images that `scores` has.

    Raises ValueError for another number of labels.
    """
    if labels.shape != (scores.n_images,):
        raise ValueError(
            f"labels must have shape ({scores.n_images},), one for each image that was scored, got "
            f"{tuple(labels.shape)}"
        )
    bits = scores.bits(scores.log_weights("discretized")).mean(0)
    classes = {label: bits[labels == label] for label in labels.unique().tolist()}
    return [
        ClassBits(label, len(part), float(part.mean()), standard_error(part))
        for label, part in classes.items()
    ]


@dataclass(frozen=True)
class ClassDistance:
    """The Fréchet distance of the samples of a class to the real images of that class.

    error: its standard error over samples, by the bootstrap. floor: the distance of other real
    images of the class, None where there are fewer than two.
    """

    label: int
    value: float
    error: float
    floor: float | None
    n_samples: int
    n_reference: int


def frechet_by_class(
    samples: tuple[Tensor, Tensor],
    reference: tuple[Tensor, Tensor],
    others: tuple[Tensor, Tensor],
    extractor: FeatureExtractor,
    *,
    progress: ShowProgress = no_progress,
) -> list[ClassDistance]:
    """The distance of each class that has two samples and two real images.

    samples, reference, others: (bytes (N, C, H, W), labels (N,)) of samples, of real images, and of
    real images that are not in the reference, for the floor. A class has fewer images, so its
    distance is larger than the distance of all images: compare it with its floor.
    """
    features: list[dict[int, Tensor]] = []  # of each class that has two images or more
    sets = {"samples": samples, "real images": reference, "other real images": others}
    for name, (images, labels) in sets.items():
        (rows_of_set, _), _ = measure_images(extractor, name, images, progress=progress)
        parts = {label: rows_of_set[labels == label] for label in labels.unique().tolist()}
        features.append({label: part for label, part in parts.items() if len(part) > 1})
    rows = []
    for label in sorted(features[0].keys() & features[1].keys()):
        drawn, real, *other = (
            collect_statistics(one[label], reference[0], extractor)
            for one in features
            if label in one
        )
        floor = other[0].distance(real) if other else None
        error = bootstrap_error(features[0][label], real)
        counts = len(features[0][label]), len(features[1][label])
        rows.append(ClassDistance(label, drawn.distance(real), error, floor, *counts))
    return rows


@dataclass(frozen=True, eq=False)
class Classification:
    """log p(x | label) of every image (rows) and class (columns): (N, K) float64, nats.

    For a pair a bound on it. labels: (N,), the true ones. All classes have the same prior.
    """

    log_likelihoods: Tensor
    labels: Tensor

    @property
    def log_posterior(self) -> Tensor:
        """log p(label | x) by Bayes' rule: (N, K), nats."""
        return torch.log_softmax(self.log_likelihoods, dim=1)

    @property
    def right(self) -> Tensor:
        """Whether the likeliest class is the true one: (N,) bool."""
        return self.log_likelihoods.argmax(1) == self.labels

    @property
    def accuracy(self) -> float:
        """The fraction of images classified correctly."""
        return float(self.right.double().mean())

    @property
    def accuracy_error(self) -> float | None:
        """The standard error of the accuracy, over images."""
        return standard_error(self.right.double())

    @property
    def bits(self) -> float:
        """The mean of -log2 p(true label | x), in bits."""
        chosen = self.log_posterior.gather(1, self.labels[:, None])
        return -float(chosen.mean()) / math.log(2)

    def confusion(self) -> Tensor:
        """How many images of each class (rows) are taken for each class (columns): (K, K)."""
        k = self.log_likelihoods.shape[1]
        pairs = self.labels * k + self.log_likelihoods.argmax(1)
        return torch.bincount(pairs, minlength=k * k).view(k, k)


@torch.no_grad()
def classify(
    model: PixelCNNpp | SmoothedPair,
    dataset: ImageDataset,
    *,
    limit: int | None = None,
    n_noise: int = 1,
    batch_size: int = 100,
    seed: int = 0,
    progress: Callable[[float], None] | None = None,
) -> Classification:
    """Classify the first `limit` images (all by default) by the likelihoods of their classes.

    model: a model without context, with exact log p(x | label); or a pair, at least one of whose
    models has classes. A pair is judged by its importance-weighted bound from `n_noise` draws of
    x~, the same noise for all classes. seed: decides the noise. Raises ValueError for a model or
    data without classes, and as `score_pair` does.
    """
    pair: SmoothedPair | None = None
    if isinstance(model, SmoothedPair):
        pair, network, n_classes = model, model.noisy, model.n_classes
    else:
        network, n_classes = in_evaluation(model), model.config.condition_size
    if n_classes == 0:
        raise ValueError("only a model with classes classifies: its n_classes is 0")
    names = network.config.class_names if pair is None else pair.class_names
    check_dataset(dataset)
    if dataset.labels is not None and not dataset.has_classes(names):
        raise ValueError(
            f"the labels of {dataset.source} are of other classes than the model's "
            f"{', '.join(names)}"
        )
    if pair is None and network.config.conditioning != "none":
        raise ValueError("a denoiser does not classify alone: give the pair that it is of")

    def nats_of(x: Tensor, _: Tensor | None, first: int, number: int) -> dict[str, Tensor]:
        label = torch.full((len(x),), number, device=x.device)
        if pair is None:
            return {"nats": network.log_prob(x, label=label)}
        nats = pair.elbo(
            x,
            label=label,
            n_noise=n_noise,
            importance_weighted=True,
            seed=seed,
            first_index=first,
        )
        return {"nats": nats}

    labels = dataset.labels_for(n_classes)
    rows = nats_of_images(
        nats_of, dataset, network, labels, limit, batch_size, progress, rows=n_classes
    )
    nats = rows["nats"].mT.contiguous()
    return Classification(nats, dataset.known_labels()[: len(nats)])
