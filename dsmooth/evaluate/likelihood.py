"""Bits per dimension of models on held-out images, in every convention (docs/math.md, section 5).

`score_pair` and `score_plain` keep the nats of each image and draw, which `conventions` turns into
the numbers that are in use.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from torch import Tensor

from ..bound import bound_terms, log_mean_exp
from ..config import Precision, Role
from ..data import ImageDataset
from ..fields import check_number, check_numbers
from ..functional.logistic_mixture import logistic_mixture_log_prob_inner
from ..machine import autocast
from ..nn import PixelCNNpp
from ..nn.condition import NO_CLASS, labels_of
from ..nn.images import snap_half_precision
from ..nn.weights import in_evaluation, weights_digest
from ..pair import SmoothedPair
from ..philox import Stream
from ..pixels import PER_UNIT, Likelihood, MixtureOptions
from ..pretrained import Loaded
from ..progress import portion
from ..results import Bits, BitsResult, Difference, MeasuredImages, Number, Numbers, Terms
from ..smoothing import GaussianSmoothing
from ..work import batches, map_parts

# The fewest draws of noise whose scatter gives the error of their mean.
ENOUGH_DRAWS = 10


@dataclass(frozen=True, eq=False)
class Scores:
    """Nats of every draw (rows) and image (columns): (R, N) float64 on the CPU.

    discretized: log-probability of the bytes of the clean image, for a pair given x~. continuous:
    its log-density in units of [-1, 1] by the same mixtures; None for a model of bytes. noisy,
    smoothing: log p(x~) and -log q(x~ | x) of a pair; None for a plain model, which has one row.
    dimensions: d, sub-pixels of an image. clean_noise: standard deviation of the noise on the
    target of the density. classes: "given" if all nats are conditioned on the class of the image,
    "hidden" if on no class, "none" for models without classes. mixture: log-weights for the bytes,
    summed over the pair's classes, if computed.
    """

    discretized: Tensor
    dimensions: int
    continuous: Tensor | None = None
    noisy: Tensor | None = None
    smoothing: Tensor | None = None
    clean_noise: float = 0.0
    classes: Literal["none", "given", "hidden"] = "none"
    mixture: Tensor | None = None

    @property
    def n_noise(self) -> int:
        """R: draws of x~ per image."""
        return self.discretized.shape[0]

    @property
    def n_images(self) -> int:
        """N: the images, the last partial batch included."""
        return self.discretized.shape[1]

    @property
    def terms(self) -> Terms:
        """The terms of the bound."""
        names = ("discretized", "continuous", "noisy", "smoothing")
        nats = ((name, getattr(self, name)) for name in names)
        return Terms(**{k: float(self.bits(x).mean()) for k, x in nats if x is not None})

    def log_weights(self, likelihood: Likelihood) -> Tensor:
        """log p(x~) - log q(x~ | x) + log p(x | x~), or log p(x) of a plain model: (R, N)."""
        image = self.discretized
        if likelihood == "continuous":
            # The mass of each byte, spread evenly over its 1 / 127.5.
            spread = image + self.dimensions * math.log(PER_UNIT)
            image = spread if self.continuous is None else self.continuous
        if self.noisy is None or self.smoothing is None:
            return image
        return self.noisy + self.smoothing + image

    def bits(self, nats: Tensor) -> Tensor:
        """-nats / (d ln 2)."""
        return -nats / (self.dimensions * math.log(2))

    def summary(self, *weights_sha256: str) -> Bits:
        """The numbers of these scores, of networks with these digests."""
        return Bits(
            likelihood="discretized" if self.continuous is None else "continuous",
            numbers=conventions(self),
            terms=self.terms,
            n_images=self.n_images,
            n_noise=self.n_noise,
            dimensions=self.dimensions,
            clean_noise=self.clean_noise,
            classes=self.classes,
            weights_sha256=weights_sha256,
        )


def conventions(scores: Scores) -> Numbers:
    """The numbers of `scores` in every convention."""

    def number(nats: Tensor) -> Number:
        bits = scores.bits(nats)
        over_draws = standard_error(bits.mean(1)) if len(bits) >= ENOUGH_DRAWS else None
        return Number(float(bits.mean()), standard_error(bits.mean(0)), over_draws)

    discrete, density = (scores.log_weights(form) for form in ("discretized", "continuous"))
    several, mixture = scores.n_noise > 1, scores.mixture
    return Numbers(
        discrete=number(discrete),
        density=number(density),
        per_byte=number(density - scores.dimensions * math.log(PER_UNIT)),
        importance_weighted=number(log_mean_exp(discrete)[None]) if several else None,
        mixture=None if mixture is None else number(mixture),
    )


def bits_per_dim(scores: Scores) -> Number:
    """The number by the likelihood of the denoiser or plain model: a density, or probabilities of
    bytes, which compare with the literature. A bound for a pair, exact for a plain model."""
    return scores.summary().headline


def standard_error(values: Tensor) -> float | None:
    """Standard error of the mean of independent values (n,); None for a single one."""
    return float(values.std() / math.sqrt(len(values))) if len(values) > 1 else None


def paired_difference(scores: Scores, other: Scores) -> Difference | None:
    """Bits/dim of `scores` minus those of `other`, for the bytes of the same images; None if only
    one of them is given the classes."""
    if (scores.classes == "given") != (other.classes == "given"):
        return None
    bits = [s.bits(s.log_weights("discretized").mean(0)) for s in (scores, other)]
    difference = bits[0] - bits[1]
    return Difference(float(difference.mean()), standard_error(difference), scores.n_images)


def check_dataset(model: SmoothedPair | PixelCNNpp, dataset: ImageDataset, least: int = 1) -> None:
    """Raise ValueError for fewer images than `least`, and for images of another shape than a
    pair's, or than a network's if known."""
    check_number("images", len(dataset), least)
    kind, network = ("pair", model.noisy) if isinstance(model, SmoothedPair) else ("model", model)
    wanted = (network.config.image_channels, *(model.image_size or dataset.image_size))
    if (shape := tuple(dataset.images.shape[1:])) != wanted:
        raise ValueError(
            f"the {kind} is for images (C, H, W) = {wanted}, got {dataset.name} of {shape}: "
            f"{dataset.source}"
        )


@dataclass(frozen=True, eq=False)
class Measured:
    """Images and how a model is given them, as `measured` resolves them.

    labels: (N,) int64, -1 for no class; None for a model without classes. classes: of `Scores`.
    """

    dataset: ImageDataset
    labels: Tensor | None
    classes: Literal["none", "given", "hidden"]
    batch_size: int
    device: torch.device
    dtype: torch.dtype


def measured(
    model: SmoothedPair | PixelCNNpp, dataset: ImageDataset, batch_size: int, n_noise: int = 1
) -> Measured:
    """Raises ValueError for numbers out of range, and images or labels that do not fit."""
    check_numbers(batch_size=(batch_size,), n_noise=(n_noise,))
    check_dataset(model, dataset)
    classes, seen = model.classes, dataset.has_classes(model.classes)
    label = dataset.labels_for(classes) if seen else NO_CLASS if classes else None
    labels = labels_of(label, classes, len(dataset))
    words: Literal["none", "given", "hidden"] = "given" if seen else "hidden" if classes else "none"
    return Measured(dataset, labels, words, batch_size, model.device, model.dtype)


def nats_of_images(
    images: Measured,
    nats_of: Callable[[Tensor, Tensor | None, int, int], dict[str, Tensor]],
    rows: int = 1,
) -> dict[str, Tensor]:
    """The nats (rows, N) float64 of images, by the names that `nats_of` gives.

    nats_of(batch, its labels, index of its first image, row) returns the nats (B,) of a batch for
    one row, on the model's device.
    """
    dataset, device = images.dataset, images.device

    def compute(part: tuple[int, range]) -> dict[str, Tensor]:
        row, batch = part
        indices = torch.arange(batch.start, batch.stop)
        labels = None if images.labels is None else images.labels[indices].to(device)
        nats = nats_of(dataset.batch(indices).to(device, images.dtype), labels, batch.start, row)
        return {name: values.double().cpu() for name, values in nats.items()}

    parts = [*itertools.product(range(rows), batches(len(dataset), images.batch_size))]
    found = [*map_parts(compute, parts, in_threads=device.type == "cpu")]
    return {name: torch.cat([part[name] for part in found]).view(rows, -1) for name in found[0]}


@torch.no_grad()
def score_pair(
    pair: SmoothedPair,
    dataset: ImageDataset,
    *,
    n_noise: int = 1,
    batch_size: int = 100,
    seed: int = 0,
    clean_noise: float = 0.0,
    mixture: bool = False,
) -> Scores:
    """Nats of images, each with `n_noise` draws of x~.

    The noise of an image depends on (seed, its index, draw), so the result depends on batch_size to
    rounding only. clean_noise: standard deviation of the noise on the target of the density, 0.01
    for a denoiser trained as the paper's. A pair with classes is given the images' labels and
    bounds log p(x | label); images whose classes have other names are given no class. mixture:
    also bound log p(x) by the sum over its classes, as `SmoothedPair.elbo` does without a label.
    Raises ValueError for counts below 1 and for images, or labels, that are not the pair's.
    """
    images, bound = measured(pair, dataset, batch_size, n_noise), pair.bound()
    smoothing = pair.smoothing
    noise = GaussianSmoothing(clean_noise, Stream.CLEAN_NOISE) if clean_noise else None

    def nats_of(x: Tensor, labels: Tensor | None, first: int, draw: int) -> dict[str, Tensor]:
        place = {"seed": seed, "first_index": first, "repeat": draw}
        x_tilde = smoothing.sample(x, **place)
        target = x if noise is None else noise.sample(x, **place)
        image_terms = partial(_image_nats, bound.denoiser, x, target, x_tilde)
        terms = partial(bound_terms, bound, x, x_tilde, denoiser_terms=image_terms)
        nats = terms(labels) | {"smoothing": -smoothing.log_prob(x_tilde, x)}
        if mixture and labels is not None:
            summed = terms(None)
            nats["mixture"] = summed["noisy"] + nats["smoothing"] + summed["discretized"]
        return nats

    nats = nats_of_images(images, nats_of, rows=n_noise)
    return _scores(nats, images, clean_noise if "continuous" in nats else 0.0)


@torch.no_grad()
def score_plain(model: PixelCNNpp, dataset: ImageDataset, *, batch_size: int = 100) -> Scores:
    """Nats of images by a model without context: exact, no bound.

    A model with classes gives log p(x | label). Errors as of `score_pair`.
    """
    kinds = model.config.conditioning, model.config.likelihood
    if kinds[0] != "none" or kinds[1] == "gaussian":
        raise ValueError(
            'a plain model must have conditioning="none" and no gaussian noise in its likelihood, '
            f'got "{kinds[0]}" and "{kinds[1]}"'
        )
    model, images = in_evaluation(model), measured(model, dataset, batch_size)

    def nats_of(x: Tensor, labels: Tensor | None, first: int, draw: int) -> dict[str, Tensor]:
        return _image_nats(model, x, x, None, labels)

    return _scores(nats_of_images(images, nats_of), images)


def _scores(nats: dict[str, Tensor], images: Measured, clean_noise: float = 0.0) -> Scores:
    dimensions, classes = images.dataset.images[0].numel(), images.classes
    return Scores(**nats, dimensions=dimensions, clean_noise=clean_noise, classes=classes)


def _image_nats(
    model: PixelCNNpp, x: Tensor, target: Tensor, x_tilde: Tensor | None, labels: Tensor | None
) -> dict[str, Tensor]:
    """log p of the bytes of x, and of the target if the model has a density: (B,), nats, summed in
    float64."""
    config, vector = model.config, model.vectors(labels)
    params, exact = model.given_vector(x, x_tilde, vector), snap_half_precision(x)
    masses: MixtureOptions = {**config.mixture, "likelihood": "discretized"}
    nats = {"discretized": logistic_mixture_log_prob_inner(exact, params, masses)}
    if config.likelihood == "continuous":
        params = params if target is x else model.given_vector(target, x_tilde, vector)
        nats["continuous"] = logistic_mixture_log_prob_inner(target, params, config.mixture)
    return {name: pixels.double().sum((1, 2)) for name, pixels in nats.items()}


def clean_noise_of(pair: SmoothedPair) -> float:
    """Noise on the target that the denoiser was trained with; 0 where no record states it."""
    return pair.denoiser.record.clean_noise if pair.denoiser.record is not None else 0.0


def measure_bits(
    models: Loaded,
    dataset: ImageDataset,
    *,
    n_noise: int = 1,
    batch_size: int = 100,
    seed: int = 0,
    precision: Precision = "auto",
    mixture: bool = False,
) -> BitsResult:
    """Bits/dim of a pair, a plain model or both. Arguments and errors as for `score_pair`."""
    plain, roles = models.plain, [*models.networks]
    measures: dict[str, Callable[[], Scores]] = {}
    if roles != ["plain"]:
        choices = {"n_noise": n_noise, "batch_size": batch_size, "seed": seed}
        measure_pair = partial(score_pair, models.pair, dataset, mixture=mixture, **choices)
        measures["pair"] = partial(measure_pair, clean_noise=clean_noise_of(models.pair))
    if plain is not None:
        measures["plain"] = partial(score_plain, plain, dataset, batch_size=batch_size)
    scores = {}
    with autocast(models.device, precision):
        for name, measure in measures.items():
            with portion(1 / len(measures)):
                scores[name] = measure()
    digests = {role: weights_digest(network) for role, network in models.networks.items()}
    parts: dict[str, tuple[Role, ...]] = {"pair": ("noisy", "denoiser"), "plain": ("plain",)}
    return BitsResult(
        MeasuredImages(dataset.name, dataset.split, len(dataset)),
        seed,
        {name: found.summary(*(digests[r] for r in parts[name])) for name, found in scores.items()},
        difference=paired_difference(*scores.values()) if len(scores) > 1 else None,
    )
