"""Measures of classes: bits/dim and the Fréchet distance of each, and classification by Bayes' rule
with a class-conditional model (docs/math.md, section 8)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..data import ImageDataset
from ..nn import PixelCNNpp
from ..nn.weights import in_evaluation
from ..pair import SmoothedPair
from ..progress import Progress, progress_of
from ..results import FLOOR, ClassBits, ClassDistances
from .batches import check_images, nats_of_images
from .comparison import Reference, compare_images
from .features import FeatureExtractor
from .likelihood import Scores, standard_error


def bits_by_class(
    scores: Scores, labels: Tensor, names: Sequence[str] = ()
) -> tuple[ClassBits, ...]:
    """Bits/dim of the bytes of each class that occurs, for a pair by its bound.

    labels: (N,), of the images that `scores` has. names: of the classes, if known. Raises
    ValueError for another number of labels.
    """
    if labels.shape != (scores.n_images,):
        raise ValueError(
            f"labels must have shape ({scores.n_images},), one for each image that was scored, got "
            f"{tuple(labels.shape)}"
        )
    bits = scores.bits(scores.log_weights("discretized")).mean(0)
    classes = {label: bits[labels == label] for label in labels.unique().tolist()}
    return tuple(
        ClassBits(
            label, len(part), float(part.mean()), standard_error(part), name=_name(label, names)
        )
        for label, part in classes.items()
    )


def _name(label: int, names: Sequence[str]) -> str:
    """The name of a class, empty if it is unknown."""
    return names[label] if label < len(names) else ""


def frechet_by_class(
    samples: ImageDataset,
    reference: ImageDataset,
    others: ImageDataset,
    extractor: FeatureExtractor,
    *,
    progress: bool = False,
) -> tuple[ClassDistances, ...]:
    """`compare_images` of each class that has two samples and two real images.

    others: real images that are not in the reference, for the floor. All have labels. A class has
    fewer images, so its distance is larger than the distance of all: compare it with its floor.
    """
    classes, results = samples.known_labels().unique().tolist(), []
    with progress_of(progress, "distances of classes", len(classes), "classes") as done:
        for number, label in enumerate(classes, 1):
            drawn, real, floor = (
                dataset.images[dataset.known_labels() == label]
                for dataset in (samples, reference, others)
            )
            if min(len(drawn), len(real)) > 1:
                sets = {"samples": drawn} | ({FLOOR: floor} if len(floor) > 1 else {})
                result = compare_images(sets, Reference.of_images(real, extractor), extractor)
                name = _name(label, reference.class_names)
                results.append(
                    ClassDistances(label, len(real), result.distances, result.warnings, name=name)
                )
            done(number)
    return tuple(results)


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
        """log p(x, label): (N, K)."""
        return self.log_likelihoods + self.log_prior

    @property
    def right(self) -> Tensor:
        """Whether the likeliest class is the true one: (N,) bool."""
        return self.log_joint.argmax(1) == self.labels

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
        """The mean of -log2 p(true label | x) by Bayes' rule, in bits."""
        chosen = self.log_joint.log_softmax(1).gather(1, self.labels[:, None])
        return -float(chosen.mean()) / math.log(2)

    @property
    def bits_given_class(self) -> float:
        """The mean of -log2 p(x | true label) / d."""
        return self._bits_per_dim(self.log_likelihoods.gather(1, self.labels[:, None]))

    @property
    def bits_of_mixture(self) -> float:
        """The mean of -log2 p(x) / d by the mixture of the classes, which the model draws from."""
        return self._bits_per_dim(self.log_joint.logsumexp(1))

    def _bits_per_dim(self, nats: Tensor) -> float:
        return -float(nats.mean()) / (self.dimensions * math.log(2))

    def confusion(self) -> Tensor:
        """How many images of each class (rows) are taken for each class (columns): (K, K)."""
        k = self.log_likelihoods.shape[1]
        pairs = self.labels * k + self.log_joint.argmax(1)
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
        pair, network, n_classes, names = model, model.noisy, model.n_classes, model.class_names
    else:
        network = in_evaluation(model)
        n_classes, names = model.config.condition_size, model.config.class_names
    if n_classes == 0:
        raise ValueError("only a model with classes classifies: its n_classes is 0")
    check_images(model, dataset)
    dataset = dataset.first(limit)
    if dataset.labels is not None and not dataset.has_classes(names):
        raise ValueError(
            f"the labels of {dataset.source} are of other classes than the model's "
            f"{', '.join(names)}"
        )

    def nats_of(x: Tensor, _: Tensor | None, first: int, number: int) -> dict[str, Tensor]:
        label = torch.full((len(x),), number, device=x.device)
        if pair is None:
            return {"nats": network.log_prob(x, label=label)}
        bound = pair.elbo(
            x, label=label, n_noise=n_noise, importance_weighted=True, seed=seed, first_index=first
        )
        return {"nats": bound}

    labels = dataset.labels_for(n_classes)
    with progress_of(progress, "classifying", len(dataset)) as done:
        rows = nats_of_images(nats_of, dataset, network, labels, batch_size, done, rows=n_classes)
    nats = rows["nats"].mT.contiguous()
    shares = network.config.class_shares if pair is None else pair.classes.shares
    prior = torch.tensor(shares or [1 / n_classes] * n_classes, dtype=nats.dtype).log()
    dimensions = dataset.images[0].numel()
    return Classification(nats, dataset.known_labels(), prior, dimensions)
