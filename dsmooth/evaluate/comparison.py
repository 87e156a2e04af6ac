"""Sets of images against real ones: every distance and score, with its name and its floor."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.util import find_spec

import numpy as np
import torch
from torch import Tensor

from ..data import epoch_order
from ..data.dataset import as_grey
from ..fields import check_tensor
from ..progress import portion
from ..results import FLOOR, Distance, FidelityScores, FrechetResult
from ..work import map_parts
from .features import FeatureExtractor, Features, extract_features
from .frechet import FeatureStatistics, distance_with_error

# Settings of torch-fidelity.
SUBSETS, SUBSET_SIZE, SUBSET_SEED, SPLITS, NEIGHBOURS = 100, 1000, 2020, 10, 3


@dataclass(frozen=True, eq=False)
class Reference:
    """Real images to compare with, as the `extractor` sees them: statistics of their features.

    features: (M, D), None if unknown: then there is no kernel distance, precision or recall.
    image_shape: (C, H, W), None if unknown.
    """

    extractor: FeatureExtractor
    statistics: FeatureStatistics
    features: Tensor | None = None
    image_shape: tuple[int, ...] | None = None

    @classmethod
    def of(cls, real: Tensor | FeatureStatistics, extractor: FeatureExtractor) -> Reference:
        """The reference of bytes (N, C, H, W), N >= 2; or of statistics by the same extractor."""
        if isinstance(real, FeatureStatistics):
            return cls(extractor, real)
        features = extract_features(real, extractor).features
        statistics = FeatureStatistics.of_batches(features.split(1000))
        return cls(extractor, statistics, features, tuple(real.shape[1:]))


def compare_images(
    sets: Mapping[str, Tensor], reference: Reference, *, seed: int = 0
) -> FrechetResult:
    """Compare sets of images with `reference`, by the features of its extractor.

    sets: bytes (N, C, H, W), N >= 2, by name; grey ones may be stored as RGB. The set "real" has
    images of the data that are not in the reference: their distance, the floor, is what a perfect
    model would get with as many samples. seed: of the bootstrap. Memory: 4 N D bytes, the features
    of a set.

    Raises ValueError for images of another shape, and for statistics of another dimension.
    """
    facts, real, wanted = reference.extractor.facts, reference.statistics, reference.image_shape
    if wanted is not None and wanted[0] == 1:
        sets = {name: as_grey(images) for name, images in sets.items()}
    for images in sets.values():
        check_tensor("images", images, ("N", *(wanted or "CHW")))

    distances = {}
    for name, images in sets.items():
        if name == FLOOR and len(images) == 1:
            continue
        with portion(1 / len(sets)):
            features, scores = extract_features(images, reference.extractor), None
            rows = features.features
            check_tensor(f"features of {facts.name}", rows, ("N", len(real.mean)))
            value, error = distance_with_error(rows, real, seed=seed)
            if has_fidelity():
                scores = fidelity_scores(features, reference.features)
        distances[name] = Distance(value, error, len(images), black_share(images), scores)
    name, warnings = facts.distance_name, tuple(warn(sets, real))
    return FrechetResult(name, facts, len(real.mean), real.count, distances, warnings)


def black_share(images: Tensor) -> float:
    """The share of pixels of bytes (N, C, H, W) that are black in every colour."""
    return float((images.amax(1) == 0).double().mean())


def warn(sets: Mapping[str, Tensor], reference: FeatureStatistics) -> Iterator[str]:
    """Warnings of too few images, one for each distinct count, and of an unknown reference."""
    d, n_floor = len(reference.mean), len(sets.get(FLOOR, ()))
    counts = dict.fromkeys(len(images) for name, images in sets.items() if name != FLOOR)
    kinds = [(count, "samples") for count in counts]
    for count, name in (*kinds, (reference.count, "real images"), (n_floor, "images of the floor")):
        if count and count < d:
            yield f"{count:,} {name} are fewer than the {d:,} features: the distance is biased up"
    others = [n for n in counts if n != n_floor]
    if n_floor == 1:
        yield "one image gives no floor"
    elif n_floor and others:
        numbers = " and ".join(f"{n:,}" for n in others)
        yield f"the floor is of {n_floor:,} images, not {numbers}: fewer images, larger distance"
    if reference.count is None:
        yield (
            "the statistics of the reference state neither their extractor nor the number of "
            "images and their resize, and the distance depends on all of them"
        )


def has_fidelity() -> bool:
    """Whether torch-fidelity, the extra "fid", is there."""
    return find_spec("torch_fidelity") is not None


def fidelity_scores(samples: Features, real: Tensor | None) -> FidelityScores:
    """Scores of images by their features, and by their class logits if they have some.

    real: features (M, D) of real images, None if these are not known. Needs torch-fidelity.

    precision: the fraction of samples that are as near to a real image as that image's
    third-nearest real one; recall: the same with samples and real images swapped (Kynkäänniemi et
    al., NeurIPS 2019). At most as many real images as samples are taken, in a fixed random order.
    Both need four images of each kind. inception_score: exp E[KL(p(y | x) || p(y))] over the
    classes y, mean and deviation over ten parts (Salimans et al., 2016).
    """
    from torch_fidelity.metric_isc import isc_features_to_metric
    from torch_fidelity.metric_prc import prc_features_to_metric

    scores: dict[str, float] = {}
    if real is not None:
        x, y = samples.features.double(), real.double()
        mean, deviation = kernel_distance(x, y)
        scores |= {"kernel_distance": mean, "kernel_distance_deviation": deviation}
        if min(len(x), len(y)) > NEIGHBOURS:
            y = y[epoch_order(len(y), 0, 0)[: len(x)]]
            # 1,000 rows of a matrix of distances at a time: 0.4 GB if it has 50,000 columns.
            settings = {"prc_batch_size": 1000, "save_cpu_ram": True, "verbose": False}
            near = prc_features_to_metric(x, y, **settings)
            scores |= {name: near[name] for name in ("precision", "recall")}
    if samples.logits is not None:
        score = isc_features_to_metric(samples.logits, splits=min(SPLITS, len(samples.logits)))
        scores["inception_score"] = score["inception_score_mean"]
        scores["inception_score_deviation"] = score["inception_score_std"]
    return FidelityScores(**scores)


def kernel_distance(x: Tensor, y: Tensor) -> tuple[float, float]:
    """Squared maximum mean discrepancy of features (N, D) and (M, D) float64, N, M >= 2.

    By the kernel (x'y / D + 1)^3, unbiased; mean and deviation over torch-fidelity's 100 subsets of
    1,000 images, or of all if there are fewer. Source: Binkowski et al., ICLR 2018.
    """
    size, random = min(SUBSET_SIZE, len(x), len(y)), np.random.RandomState(SUBSET_SEED)
    subsets = [[random.choice(len(z), size, replace=False) for z in (x, y)] for _ in range(SUBSETS)]

    def kernel(a: Tensor, b: Tensor) -> Tensor:
        return (a @ b.T / a.shape[1] + 1) ** 3

    def discrepancy(number: int) -> float:
        a, b = (z[torch.from_numpy(rows)] for z, rows in zip((x, y), subsets[number], strict=True))
        within = sum(k.sum() - k.diagonal().sum() for k in (kernel(a, a), kernel(b, b)))
        return float(within / (size * (size - 1)) - 2 * kernel(a, b).mean())

    found = torch.tensor([*map_parts(discrepancy, range(SUBSETS))], dtype=torch.float64)
    return float(found.mean()), float(found.std(correction=0))
