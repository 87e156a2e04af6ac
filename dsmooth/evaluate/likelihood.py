"""Bits per dimension of models on held-out images, in every convention (docs/math.md, section 5).

`score_pair` and `score_plain` keep the nats of each image and draw; `conventions` turns them into
the numbers that are in use. Each has a name, its errors, and a note of the numbers that it compares
with.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from torch import Tensor

from ..bound import bound_terms, log_mean_exp
from ..config import Precision, Role
from ..data import ImageDataset
from ..fields import check_number
from ..functional import logistic_mixture_log_prob
from ..machine import autocast
from ..nn import PixelCNNpp
from ..nn.condition import NO_CLASS
from ..nn.images import snap_half_precision
from ..nn.weights import in_evaluation, weights_digest
from ..pair import SmoothedPair
from ..philox import Stream
from ..pixels import PER_UNIT, Likelihood
from ..pretrained import Loaded
from ..progress import portion
from ..results import Bits, BitsResult, Convention, Difference, MeasuredImages, Terms
from ..smoothing import GaussianSmoothing
from .batches import check_images, labels_for_model, nats_of_images

# A density in units of [-1, 1] becomes one per byte by adding this many bits/dim.
BYTE_BITS = math.log2(PER_UNIT)
# The fewest draws of noise whose scatter gives the error of their mean.
ENOUGH_DRAWS = 10


@dataclass(frozen=True, eq=False)
class Scores:
    """Nats of every draw (rows) and image (columns): (R, N) float64 on the CPU.

    discretized: log-probability of the bytes of the clean image, for a pair given x~. continuous:
    its log-density in units of [-1, 1] by the same mixtures; None if the model was trained on
    bytes: its density is not meaningful. noisy, smoothing: log p(x~) and -log q(x~ | x) of a pair;
    None for a plain model, which has one row. dimensions: d, sub-pixels of an image. clean_noise:
    standard deviation of the noise on the target of the density. classes: whether all is given the
    class of the image, or no class ("hidden"). mixture: log-weights for the bytes by the
    sum over the pair's classes, which the pair draws from; None where it was not computed.
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
        """Each term of the bound."""
        nats = {"continuous": self.continuous, "noisy": self.noisy, "smoothing": self.smoothing}
        others = {k: float(self.bits(v).mean()) for k, v in nats.items() if v is not None}
        return Terms(float(self.bits(self.discretized).mean()), **others)

    def log_weights(self, likelihood: Likelihood) -> Tensor:
        """log p(x~) - log q(x~ | x) + log p(x | x~), or log p(x) of a plain model: (R, N).

        The density of a model that was trained on bytes is the mass of each byte, spread evenly
        over its 1 / 127.5.
        """
        image = self.discretized
        if likelihood == "continuous":
            spread = self.discretized + self.dimensions * math.log(PER_UNIT)
            image = spread if self.continuous is None else self.continuous
        if self.noisy is None or self.smoothing is None:
            return image
        return self.noisy + self.smoothing + image

    def bits(self, nats: Tensor) -> Tensor:
        """-nats / (d ln 2)."""
        return -nats / (self.dimensions * math.log(2))

    def summary(self, *weights_sha256: str) -> Bits:
        """The numbers of these scores, of networks with these digests."""
        trained = bits_per_dim(self)
        return Bits(
            likelihood="discretized" if self.continuous is None else "continuous",
            value=trained.value,
            error=trained.error,
            terms=self.terms,
            n_images=self.n_images,
            n_noise=self.n_noise,
            dimensions=self.dimensions,
            clean_noise=self.clean_noise,
            classes=self.classes,
            conventions=tuple(conventions(self)),
            weights_sha256=weights_sha256,
        )


def conventions(scores: Scores) -> list[Convention]:
    """The numbers of `scores` in every convention, the comparable ones first."""

    def row(name: str, nats: Tensor, meaning: str, comparable: bool = True) -> Convention:
        bits = scores.bits(nats)
        value, repeats = float(bits.mean()), None
        if len(bits) >= ENOUGH_DRAWS:
            repeats = standard_error(bits.mean(1))
        error = standard_error(bits.mean(0))
        return Convention(name, value, error, repeats, comparable, meaning)

    discrete, density = (scores.log_weights(form) for form in ("discretized", "continuous"))
    per_byte = density - scores.dimensions * math.log(PER_UNIT)
    event, condition = "bytes", ""
    if scores.classes == "given":
        event, condition = "bytes | class", " given the class"
    if scores.continuous is None:
        density_words = "the mass of each byte spread evenly over it, in units of [-1, 1]"
        byte_words = "the same per grey level, so the discrete number again"
    else:
        target = f"x + {scores.clean_noise:g} n" if scores.clean_noise else "x"
        density_words = f"density of {target}{condition} in units of [-1, 1]"
        byte_words = "the same per grey level; not a probability of bytes"
    if scores.noisy is None:
        rows = [row("discrete", discrete, f"exactly -log2 P({event}) / d")]
    else:
        rows = [row("discrete bound", discrete, f"upper bound on -log2 P({event}) / d")]
        if scores.n_noise > 1:
            name = f"discrete bound, importance-weighted, n = {scores.n_noise}"
            meaning = "the same by the log of the mean weight, which is tighter"
            rows.append(row(name, log_mean_exp(discrete)[None], meaning))
        if scores.mixture is not None:
            name = "discrete bound, mixture of classes"
            meaning = "upper bound on -log2 P(bytes) / d of the mixture that the pair draws from"
            rows.append(row(name, scores.mixture, meaning))
    return [
        *rows,
        row("density", density, density_words, comparable=False),
        row(f"density + {BYTE_BITS:.3f}", per_byte, byte_words, comparable=False),
    ]


def bits_per_dim(scores: Scores) -> Convention:
    """The number in the likelihood that the model was trained with: its density, or the masses of
    bytes, which compare with the literature. A bound for a pair, exact for a plain model."""
    trained_on_bytes = scores.continuous is None
    return next(row for row in conventions(scores) if row.comparable == trained_on_bytes)


def standard_error(values: Tensor) -> float | None:
    """Standard error of the mean of independent values (n,); None for a single one."""
    return float(values.std() / math.sqrt(len(values))) if len(values) > 1 else None


def paired_difference(scores: Scores, other: Scores) -> Difference | None:
    """Bits/dim that `scores` need more than `other` for the bytes of the same images.

    None if only one of them is given the classes.
    """
    if (scores.classes == "given") != (other.classes == "given"):
        return None
    bits, others = (s.bits(s.log_weights("discretized").mean(0)) for s in (scores, other))
    difference = bits - others
    return Difference(float(difference.mean()), standard_error(difference), scores.n_images)


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

    The noise of an image depends on (seed, its index, draw), so the result does not depend on
    batch_size beyond rounding. clean_noise: standard deviation of the noise on the target of the
    density, 0.01 for a denoiser trained as the paper's. A pair with classes sees the images'
    labels and bounds log p(x | label), or sees no class where the images' classes have
    other names than its own. mixture: also bound log p(x) by the sum over its classes, as
    `SmoothedPair.elbo` does without a label.
    Raises ValueError for counts below 1 and for images, or labels, that are not the pair's.
    """
    check_number("n_noise", n_noise)
    check_images(pair, dataset)
    pair, labels = in_evaluation(pair), labels_for_model(dataset, pair.classes)
    noise = GaussianSmoothing(clean_noise, Stream.CLEAN_NOISE) if clean_noise else None
    is_density = pair.denoiser.config.likelihood == "continuous"

    def nats_of(x: Tensor, label: Tensor | None, first: int, draw: int) -> dict[str, Tensor]:
        place = {"seed": seed, "first_index": first, "repeat": draw}
        x_tilde = pair.smoothing.sample(x, **place)

        def image_terms(label: Tensor | None) -> dict[str, Tensor]:
            params = pair.denoiser(x, x_tilde, label)
            nats = {"discretized": _log_prob(pair.denoiser, x, params, "discretized")}
            if is_density:
                target = x if noise is None else noise.sample(x, **place)
                params = params if noise is None else pair.denoiser(target, x_tilde, label)
                nats["continuous"] = _log_prob(pair.denoiser, target, params, "continuous")
            return nats

        models = pair.noisy, pair.denoiser
        bound = partial(bound_terms, models, x, x_tilde, denoiser_terms=image_terms)
        nats = bound(label, pair.log_prior) | {"smoothing": -pair.smoothing.log_prob(x_tilde, x)}
        if mixture and pair.n_classes:
            summed = bound(None, pair.log_prior)
            nats["mixture"] = summed["noisy"] + nats["smoothing"] + summed["discretized"]
        return nats

    nats = nats_of_images(nats_of, dataset, pair.noisy, labels, batch_size, rows=n_noise)
    return _scores(nats, dataset, labels, clean_noise if is_density else 0.0)


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
    check_images(model, dataset)
    forms: set[Likelihood] = {"discretized", model.config.likelihood}
    model, labels = in_evaluation(model), labels_for_model(dataset, model.config.classes)

    def nats_of(x: Tensor, label: Tensor | None, first: int, draw: int) -> dict[str, Tensor]:
        params = model(x, label=label)
        return {form: _log_prob(model, x, params, form) for form in forms}

    return _scores(nats_of_images(nats_of, dataset, model, labels, batch_size), dataset, labels)


def _scores(
    nats: dict[str, Tensor], dataset: ImageDataset, labels: Tensor | None, clean_noise: float = 0.0
) -> Scores:
    classes: Literal["none", "given", "hidden"] = "none"
    if labels is not None:
        classes = "hidden" if bool((labels == NO_CLASS).all()) else "given"
    dimensions = dataset.images[0].numel()
    return Scores(**nats, dimensions=dimensions, clean_noise=clean_noise, classes=classes)


def _log_prob(model: PixelCNNpp, x: Tensor, params: Tensor, likelihood: Likelihood) -> Tensor:
    """log p(x) by a likelihood and the parameters `params`: (B,), nats, summed in float64."""
    mixture = model.config.mixture | {"likelihood": likelihood}
    if likelihood == "discretized":
        x = snap_half_precision(x)
    return logistic_mixture_log_prob(x, params, **mixture).double().sum((1, 2))


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
    scores: dict[str, Scores] = {}
    has_pair, plain = models.plain is None or len(models.networks) > 1, models.plain
    with autocast(models.device, precision):
        if has_pair:
            with portion(0.5 if plain else 1.0):
                scores["pair"] = score_pair(
                    models.pair,
                    dataset,
                    n_noise=n_noise,
                    batch_size=batch_size,
                    seed=seed,
                    clean_noise=clean_noise_of(models.pair),
                    mixture=mixture,
                )
        if plain is not None:
            with portion(0.5 if has_pair else 1.0):
                scores["plain"] = score_plain(plain, dataset, batch_size=batch_size)
    digests = {role: weights_digest(network) for role, network in models.networks.items()}
    roles: dict[str, tuple[Role, ...]] = {"pair": ("noisy", "denoiser"), "plain": ("plain",)}
    return BitsResult(
        MeasuredImages(dataset.name, dataset.split, len(dataset)),
        seed,
        {name: score.summary(*(digests[r] for r in roles[name])) for name, score in scores.items()},
        difference=paired_difference(*scores.values()) if len(scores) > 1 else None,
    )
