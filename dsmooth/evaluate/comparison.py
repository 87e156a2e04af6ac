"""A set of samples against real images: every distance and score, with its name and its floor."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from typing import Any

from torch import Tensor

from .features import FeatureExtractor, Features, extract_features
from .frechet import BOOTSTRAPS, FeatureStatistics, bootstrap_error
from .scores import fidelity_scores, has_fidelity

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
    their images, by the bootstrap. scores, floor_scores: of both, as `fidelity_scores` has them;
    none without the extra "fid".
    n_reference: None if it is not known. extractor: name, sha256, resize and dimension. warnings:
    sentences that belong to the numbers. reference: the statistics of the real images, which can be
    saved and compared with again.
    """

    name: str
    value: float
    error: float
    floor: float | None
    floor_error: float | None
    scores: dict[str, float]
    floor_scores: dict[str, float]
    n_samples: int
    n_reference: int | None
    n_floor: int
    extractor: dict[str, Any]
    warnings: tuple[str, ...]
    reference: FeatureStatistics

    def as_json(self) -> dict[str, Any]:
        """All but the statistics, as JSON values."""
        return {key: value for key, value in asdict(self).items() if key != "reference"}


def compare_images(
    samples: Tensor,
    reference: Tensor | FeatureStatistics,
    extractor: FeatureExtractor,
    *,
    floor: Tensor | None = None,
    seed: int = 0,
    progress: ShowProgress = no_progress,
) -> Comparison:
    """Compare `samples` with `reference` by the features of `extractor`.

    samples, reference, floor: bytes (N, C, H, W), N >= 2; floor: real images that are not in the
    reference, best as many as there are samples; a single one gives no floor. reference may also be
    statistics of the extractor's features. seed: of the bootstrap. progress: such as
    `dsmooth.progress.progress`. Features of all images are kept in memory: 4 N D bytes.

    Raises ValueError for images that do not fit together and statistics of another extractor.
    """
    alone = floor is not None and len(floor) == 1
    floor = None if alone else floor
    check_shapes(samples, reference, floor)
    drawn, statistics = measure_images(extractor, "samples", samples, progress=progress)
    real: Tensor | None = None
    if isinstance(reference, Tensor):
        (real, _), against = measure_images(extractor, "real images", reference, progress=progress)
    else:
        against = reference
        check_statistics(against, extractor, len(statistics.mean))

    def compare(
        features: Features, statistics: FeatureStatistics, what: str = ""
    ) -> tuple[float, float, dict[str, float]]:
        with progress(f"{extractor.distance_name}{what}", BOOTSTRAPS, "resamples") as done:
            error = bootstrap_error(features.features, against, seed=seed, progress=done)
        scores: dict[str, float] = {}
        if has_fidelity():
            with progress(f"other scores{what}", len(features.features), "images"):
                scores = fidelity_scores(features, real)
        return statistics.distance(against), error, scores

    others = None
    if floor is not None:
        others = measure_images(extractor, "the floor", floor, progress=progress)
    value, error, scores = compare(drawn, statistics)
    lowest, floor_error, floor_scores = compare(*others, ", floor") if others else (None, None, {})
    n_floor = 0 if floor is None else len(floor)
    return Comparison(
        name=extractor.distance_name,
        value=value,
        error=error,
        floor=lowest,
        floor_error=floor_error,
        scores=scores,
        floor_scores=floor_scores,
        n_samples=len(samples),
        n_reference=against.count,
        n_floor=n_floor,
        extractor={**extractor.describe(), "dimension": len(statistics.mean)},
        warnings=(*warn(len(samples), against, n_floor), *["one image gives no floor"] * alone),
        reference=against,
    )


def measure_images(
    extractor: FeatureExtractor,
    what: str,
    images: Tensor,
    *,
    progress: ShowProgress = no_progress,
) -> tuple[Features, FeatureStatistics]:
    """Features of images and their statistics, with a bar that says what they are."""
    with progress(f"features of {what}", len(images), "images") as done:
        features = extract_features(images, extractor, progress=done)
    return features, collect_statistics(features.features, images, extractor)


def collect_statistics(
    features: Tensor, images: Tensor, extractor: FeatureExtractor
) -> FeatureStatistics:
    """Statistics of features (N, D), with the shape of the images and the extractor."""
    description = {"image_shape": list(images.shape[1:]), "extractor": extractor.describe()}
    return FeatureStatistics.of_batches(features.split(1000), description)


def check_statistics(
    statistics: FeatureStatistics, extractor: FeatureExtractor, dimension: int
) -> None:
    """Raise ValueError unless `statistics` were made with this extractor, as far as they say."""
    made_with = statistics.description.get("extractor")
    if made_with not in (None, extractor.describe()):
        raise ValueError(
            f"the saved statistics were made with {made_with}, not with {extractor.describe()}"
        )
    if len(statistics.mean) != dimension:
        raise ValueError(
            f"the saved statistics must have dimension {dimension}, as {extractor.name} has, got "
            f"{len(statistics.mean)}"
        )


def image_shape(images: Tensor | FeatureStatistics) -> tuple[int, ...] | None:
    """(C, H, W) of images, or of those that statistics are of, None if they do not say."""
    if isinstance(images, Tensor):
        return tuple(images.shape[1:])
    return tuple(images.description.get("image_shape", ())) or None


def check_shapes(
    samples: Tensor, reference: Tensor | FeatureStatistics, floor: Tensor | None
) -> None:
    """Raise ValueError unless all images have one shape and there are at least 2 of each kind."""
    wanted = image_shape(samples)
    for name, images in (("samples", samples), ("reference", reference), ("floor", floor)):
        if images is None:
            continue
        if isinstance(images, Tensor) and len(images) < 2:
            raise ValueError(f"{name} must hold at least 2 images, got {len(images)}")
        if (shape := image_shape(images)) not in (None, wanted):
            raise ValueError(f"{name} must have the samples' shape {wanted} (C, H, W), got {shape}")


def warn(n: int, reference: FeatureStatistics, n_floor: int) -> Iterator[str]:
    """Sentences on too few samples, real images, or images of the floor."""
    d = len(reference.mean)
    counts = {"samples": n, "real images": reference.count or 0, "images of the floor": n_floor}
    for what, count in counts.items():
        if 0 < count < d:
            yield (
                f"{count:,} {what} are fewer than the {d:,} features: the covariance is "
                "rank-deficient and the distance biased upwards"
            )
    if n_floor and n_floor != n:
        yield (
            f"the floor is of {n_floor:,} images, not {n:,}: the fewer images, the larger the "
            "distance"
        )
    if "extractor" not in reference.description:
        yield (
            "the statistics of the reference state neither their extractor nor the number of "
            "images and their resize, and the distance depends on all of them"
        )
