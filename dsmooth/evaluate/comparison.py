"""A set of samples against real images: every distance and score, with its name and its floor."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

from torch import Tensor

from ..fields import Argument, ArgumentError
from .features import FeatureExtractor, Features, extract_features
from .frechet import (
    BOOTSTRAPS,
    FeatureStatistics,
    PublishedStatistics,
    Statistics,
    bootstrap_error,
)
from .scores import (
    InceptionScore,
    KernelDistance,
    PrecisionRecall,
    check_subsets,
    inception_score,
    kernel_distance,
    precision_and_recall,
)

SPLITS = 10  # of the Inception score, as its authors report it
# Called with (title, total, unit); yields a function that takes the number done.
ShowProgress = Callable[[str, int, str], AbstractContextManager[Callable[[int], None]]]


def no_progress(*words: object) -> AbstractContextManager[Callable[[int], None]]:
    """Shows nothing."""
    return nullcontext(lambda done: None)


@dataclass(frozen=True)
class Comparison:
    """Samples against a reference of real images.

    name: FID, or the name of the Fréchet distance with this extractor. value: the distance.
    floor: the distance of `n_floor` other real images to the same reference, which is what a
    perfect model would get with as many samples. error, floor_error: standard errors of both over
    their images, by the bootstrap. kernel, kernel_floor: the kernel distance and its
    floor, None if the reference is saved statistics. score, real_score: the Inception score of the
    samples and of the other real images, None if the extractor is no classifier. precision_recall,
    precision_recall_floor: of both, None unless asked for. n_reference: None if it is not known.
    extractor: name, sha256, resize and dimension. warnings: sentences that belong to the numbers.
    reference: the statistics of the real images, which can be saved and compared with again.
    """

    name: str
    value: float
    error: float
    floor: float | None
    floor_error: float | None
    n_samples: int
    n_reference: int | None
    n_floor: int
    kernel_name: str
    kernel: KernelDistance | None
    kernel_floor: KernelDistance | None
    score_name: str
    score: InceptionScore | None
    real_score: InceptionScore | None
    precision_recall: PrecisionRecall | None
    precision_recall_floor: PrecisionRecall | None
    extractor: dict[str, Any]
    warnings: tuple[str, ...]
    reference: Statistics

    def as_json(self) -> dict[str, Any]:
        """All but the statistics, as JSON values."""
        return {key: value for key, value in asdict(self).items() if key != "reference"}


def compare_images(
    samples: Tensor,
    reference: Tensor | Statistics,
    extractor: FeatureExtractor,
    *,
    floor: Tensor | None = None,
    batch_size: int = 100,
    subsets: int = 100,
    subset_size: int = 1000,
    seed: int = 0,
    precision_recall: bool = False,
    progress: ShowProgress = no_progress,
) -> Comparison:
    """Compare `samples` with `reference` by the features of `extractor`.

    samples, reference, floor: bytes (N, C, H, W), N >= 2; floor: real images that are not in the
    reference, best as many as there are samples; a single one gives no floor. reference may also be
    statistics that were saved here, or statistics of Inception's features that another program
    saved.
    batch_size: images at a time, changes roundings only. subsets, subset_size: of the kernel
    distance. seed: of its subsets and of the bootstrap. precision_recall: also precision and
    recall, for a reference of images. progress: such as `dsmooth.progress.progress`. Features of
    all images are kept in memory: 4 N D bytes.

    Raises ValueError for images that do not fit together and statistics of another extractor.
    """
    check_subsets(subsets, subset_size, seed)
    alone = floor is not None and len(floor) == 1
    floor = None if alone else floor
    check_shapes(samples, reference, floor)
    if precision_recall and not isinstance(reference, Tensor):
        raise ValueError("precision and recall need real images, not their statistics")

    measure = partial(measure_images, extractor, batch_size=batch_size, progress=progress)
    drawn, statistics = measure("samples", samples)
    real: Features | None = None
    if isinstance(reference, Tensor):
        real, reference = measure("real images", reference)
    else:
        check_statistics(reference, extractor, statistics.dimension)
    against: Statistics = reference

    def compare(found: Features, statistics: FeatureStatistics, what: str = "") -> dict[str, Any]:
        with progress(f"{extractor.distance_name}{what}", BOOTSTRAPS, "resamples") as done:
            value = statistics.distance(against)
            error = bootstrap_error(found.features, against, seed=seed, progress=done)
        kernel = nearness = score = None
        if real is not None:
            sizes = {"subsets": subsets, "subset_size": subset_size, "seed": seed}
            with progress(f"{extractor.kernel_name}{what}", subsets, "subsets") as done:
                kernel = kernel_distance(found.features, real.features, **sizes, progress=done)
            if precision_recall:
                nearness = precision_and_recall(found.features, real.features)
        if found.logits is not None:
            score = inception_score(found.logits, splits=min(SPLITS, len(found.logits)))
        own = {"value": value, "error": error, "kernel": kernel, "score": score}
        return {**own, "precision_recall": nearness}

    others = None if floor is None else measure("the floor", floor)
    numbers = compare(drawn, statistics)
    lowest = compare(*others, ", floor") if others else dict.fromkeys(numbers)
    n_floor = 0 if floor is None else len(floor)
    return Comparison(
        name=extractor.distance_name,
        floor=lowest["value"],
        floor_error=lowest["error"],
        n_samples=len(samples),
        n_reference=reference.count,
        n_floor=n_floor,
        kernel_name=extractor.kernel_name,
        kernel_floor=lowest["kernel"],
        score_name=extractor.score_name,
        real_score=lowest["score"],
        precision_recall_floor=lowest["precision_recall"],
        extractor={**extractor.describe(), "dimension": statistics.dimension},
        warnings=(*warn(len(samples), reference, n_floor), *["one image gives no floor"] * alone),
        reference=reference,
        **numbers,
    )


def measure_images(
    extractor: FeatureExtractor,
    what: str,
    images: Tensor,
    *,
    batch_size: int = 100,
    progress: ShowProgress = no_progress,
) -> tuple[Features, FeatureStatistics]:
    """Features of images and their statistics, with a bar that says what they are."""
    with progress(f"features of {what}", len(images), "images") as done:
        found = extract_features(images, extractor, batch_size=batch_size, progress=done)
    return found, collect_statistics(found.features, images, extractor)


def collect_statistics(
    features: Tensor, images: Tensor, extractor: FeatureExtractor
) -> FeatureStatistics:
    """Statistics of features (N, D), with the shape of the images and the extractor."""
    description = {"image_shape": list(images.shape[1:]), "extractor": extractor.describe()}
    statistics = FeatureStatistics(features.shape[1], description)
    for part in features.split(1000):
        statistics.update(part)
    return statistics


def check_statistics(statistics: Statistics, extractor: FeatureExtractor, dimension: int) -> None:
    """Raise ValueError unless `statistics` were made with this very extractor."""
    if isinstance(statistics, PublishedStatistics):
        if not extractor.is_fid:
            source = (
                f"{statistics.source} is of Inception's features, not of {extractor.name}'s: take"
            )
            raise ArgumentError("", source, Argument("extractor", "inception"))
    elif (found := statistics.description.get("extractor")) != extractor.describe():
        raise ValueError(
            f"the saved statistics were made with {found}, not with {extractor.describe()}"
        )
    if statistics.dimension != dimension:
        raise ValueError(
            f"the saved statistics must have dimension {dimension}, got {statistics.dimension}"
        )


def check_shapes(samples: Tensor, reference: Tensor | Statistics, floor: Tensor | None) -> None:
    """Raise ValueError unless all images have one shape and there are at least 2 of each kind."""
    shape = tuple(samples.shape[1:])
    for name, images in (("samples", samples), ("reference", reference), ("floor", floor)):
        found = shape
        if isinstance(images, Tensor):
            found = tuple(images.shape[1:])
            if len(images) < 2:
                raise ValueError(f"{name} must hold at least 2 images, got {len(images)}")
        elif isinstance(images, FeatureStatistics):
            found = tuple(images.description.get("image_shape", shape))
        if found != shape:
            raise ValueError(f"{name} must have the samples' shape {shape} (C, H, W), got {found}")


def warn(n: int, reference: Statistics, n_floor: int) -> Iterator[str]:
    """Sentences on too few samples, real images, or images of the floor."""
    counts = {"samples": n, "real images": reference.count or 0, "images of the floor": n_floor}
    for what, count in counts.items():
        if 0 < count < reference.dimension:
            yield (
                f"{count:,} {what} are fewer than the {reference.dimension:,} features: the "
                "covariance is rank-deficient and the distance biased upwards"
            )
    if n_floor and n_floor != n:
        yield (
            f"the floor is of {n_floor:,} images, not {n:,}: the fewer images, the larger the "
            "distance"
        )
    if isinstance(reference, PublishedStatistics):
        yield (
            f"{reference.source} states neither the number of its images nor their resize, and the "
            "distance depends on both"
        )
