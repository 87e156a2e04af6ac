"""Sets of images against real ones: every distance and score, with its name and its floor."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.util import find_spec

from torch import Tensor

from ..data import epoch_order
from ..progress import progress_of
from ..results import FLOOR, Distance, FidelityScores, FrechetResult
from .features import FeatureExtractor, Features, extract_features
from .frechet import FeatureStatistics, bootstrap_error

# Settings of torch-fidelity and of the authors, for as many images.
SUBSET_SIZE, SPLITS, NEIGHBOURS = 1000, 10, 3


@dataclass(frozen=True, eq=False)
class Reference:
    """Real images to compare with, as the `extractor` sees them.

    statistics: of their features. features: (M, D), None if unknown: then there is no kernel
    distance, precision or recall. image_shape: (C, H, W), None if unknown.
    """

    extractor: FeatureExtractor
    statistics: FeatureStatistics
    features: Tensor | None = None
    image_shape: tuple[int, ...] | None = None

    @classmethod
    def of_images(
        cls, images: Tensor, extractor: FeatureExtractor, *, progress: bool = False
    ) -> Reference:
        """The reference of bytes (N, C, H, W), N >= 2."""
        features = extract_features(images, extractor, progress=progress, title="real images")[0]
        statistics = FeatureStatistics.of_batches(features.split(1000))
        return cls(extractor, statistics, features, tuple(images.shape[1:]))


def compare_images(
    sets: Mapping[str, Tensor], reference: Reference, *, seed: int = 0, progress: bool = False
) -> FrechetResult:
    """Compare sets of images with `reference`, by the features of its extractor.

    sets: bytes (N, C, H, W), N >= 2, by name. "real" are images of the data that are not in the
    reference: their distance, the floor, is what a perfect model would get with as many samples.
    seed: of the bootstrap. progress: whether to show bars. Features of all images of a set are kept
    in memory: 4 N D bytes.

    Raises ValueError for images of another shape, and for statistics of another dimension.
    """
    extractor, real, wanted = reference.extractor, reference.statistics, reference.image_shape
    for images in sets.values():
        if wanted not in (None, tuple(images.shape[1:])):
            raise ValueError(
                f"images must have the shape of the real ones {wanted} (C, H, W), got "
                f"{tuple(images.shape[1:])}"
            )
    measured = {name: x for name, x in sets.items() if name != FLOOR or len(x) > 1}

    def distance(name: str, images: Tensor) -> Distance:
        title = "the floor" if name == FLOOR else name
        features = extract_features(images, extractor, progress=progress, title=title)
        rows = features.features
        if rows.shape[1] != len(real.mean):
            raise ValueError(
                f"statistics must have dimension {rows.shape[1]}, as the features of "
                f"{extractor.name} have, got {len(real.mean)}"
            )
        words = f"{extractor.distance_name} of {title}"
        error = bootstrap_error(rows, real, seed=seed, progress=progress, title=words)
        scores = None
        if has_fidelity():
            with progress_of(progress, f"other scores of {title}", len(images)):
                scores = fidelity_scores(features, reference.features)
        value = FeatureStatistics.of_batches(rows.split(1000)).distance(real)
        return Distance(value, error, len(images), black_share(images), scores=scores)

    return FrechetResult(
        name=extractor.distance_name,
        extractor=extractor.describe(),
        dimension=len(real.mean),
        n_reference=real.count,
        distances={name: distance(name, images) for name, images in measured.items()},
        warnings=tuple(warn(sets, real)),
    )


def black_share(images: Tensor) -> float:
    """The share of pixels of bytes (N, C, H, W) that are black in every colour."""
    return float((images.amax(1) == 0).double().mean())


def warn(sets: Mapping[str, Tensor], reference: FeatureStatistics) -> Iterator[str]:
    """Sentences on too few images, once for each number of them, and on an unknown reference."""
    d = len(reference.mean)
    counts = {len(images): "samples" for name, images in sets.items() if name != FLOOR}
    n_floor = len(sets.get(FLOOR, ()))
    for count, name in (
        *counts.items(),
        (reference.count or 0, "real images"),
        (n_floor, "images of the floor"),
    ):
        if 0 < count < d:
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

    kernel_distance: squared maximum mean discrepancy under the kernel (x'y / D + 1)^3, mean and
    deviation over 100 subsets of 1,000 images, or of all if there are fewer (Binkowski et al., ICLR
    2018). precision, recall: fractions of the samples near real images, and of real images near
    samples. An image is near a set if it is as near to one of its images as that one's
    third-nearest neighbour in the set (Kynkäänniemi et al., NeurIPS 2019). At most as many real
    images as samples are taken, in a fixed random order; there must be four. inception_score: exp
    E[KL(p(y | x) || p(y))] over the classes y, mean and deviation over ten parts (Salimans et al.,
    2016).
    """
    from torch_fidelity.metric_isc import isc_features_to_metric
    from torch_fidelity.metric_kid import kid_features_to_metric
    from torch_fidelity.metric_prc import prc_features_to_metric

    scores: dict[str, float] = {}
    if real is not None:
        x, y = samples.features.double(), real.double()
        size = min(SUBSET_SIZE, len(x), len(y))
        kernel = kid_features_to_metric(x, y, kid_subset_size=size, verbose=False)
        scores["kernel_distance"] = kernel["kernel_inception_distance_mean"]
        scores["kernel_distance_deviation"] = kernel["kernel_inception_distance_std"]
        if size > NEIGHBOURS:
            y = y[epoch_order(len(y), 0, 0)[: len(x)]]
            # 1,000 rows of a matrix of distances at a time: of 50,000 columns that is 0.4 GB.
            near = prc_features_to_metric(
                x, y, prc_batch_size=1000, save_cpu_ram=True, verbose=False
            )
            scores |= {name: near[name] for name in ("precision", "recall")}
    if samples.logits is not None:
        score = isc_features_to_metric(samples.logits, splits=min(SPLITS, len(samples.logits)))
        scores["inception_score"] = score["inception_score_mean"]
        scores["inception_score_deviation"] = score["inception_score_std"]
    return FidelityScores(**scores)
