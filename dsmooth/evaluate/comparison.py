"""A set of samples against real images: every distance and score, with its name and its floor."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from importlib.util import find_spec

import torch
from torch import Tensor

from ..data import epoch_order
from ..fields import Json
from .features import FeatureExtractor, Features, extract_features
from .frechet import BOOTSTRAPS, FeatureStatistics, bootstrap_error

# Called with (title, total, unit); yields a function that takes the number done.
ShowProgress = Callable[[str, int, str], AbstractContextManager[Callable[[int], None]]]
# Settings of torch-fidelity and of the authors, for as many images.
SUBSET_SIZE, SPLITS, NEIGHBOURS = 1000, 10, 3


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
    extractor: Json
    warnings: tuple[str, ...]
    reference: FeatureStatistics


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
    check_comparable(tuple(samples.shape[1:]), reference, extractor, floor)
    real: Tensor | None = None
    if isinstance(reference, Tensor):
        (real, _), against = measure_images(extractor, "real images", reference, progress=progress)
    else:
        against = reference

    def compare(images: Tensor, title: str) -> tuple[float, float, dict[str, float]]:
        features, statistics = measure_images(extractor, title, images, progress=progress)
        with progress(f"{extractor.distance_name} of {title}", BOOTSTRAPS, "resamples") as done:
            error = bootstrap_error(features.features, against, seed=seed, progress=done)
        scores: dict[str, float] = {}
        if has_fidelity():
            with progress(f"other scores of {title}", len(images), "images"):
                scores = fidelity_scores(features, real)
        return statistics.distance(against), error, scores

    value, error, scores = compare(samples, "samples")
    lowest, floor_error, n_floor = None, None, 0
    floor_scores: dict[str, float] = {}
    if floor is not None and len(floor) > 1:
        lowest, floor_error, floor_scores = compare(floor, "the floor")
        n_floor = len(floor)
    warnings = [*warn(len(samples), against, n_floor)]
    if floor is not None and not n_floor:
        warnings.append("one image gives no floor")
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
        extractor={**extractor.describe(), "dimension": len(against.mean)},
        warnings=tuple(warnings),
        reference=against,
    )


def measure_images(
    extractor: FeatureExtractor,
    title: str,
    images: Tensor,
    *,
    progress: ShowProgress = no_progress,
) -> tuple[Features, FeatureStatistics]:
    """Features of images and their statistics, with a bar of that title."""
    with progress(f"features of {title}", len(images), "images") as done:
        features = extract_features(images, extractor, progress=done)
    description = {"image_shape": list(images.shape[1:]), "extractor": extractor.describe()}
    return features, FeatureStatistics.of_batches(features.features.split(1000), description)


def image_shape(images: Tensor | FeatureStatistics) -> tuple[int, ...] | None:
    """(C, H, W) of images, or of those that statistics are of, None if they do not say."""
    if isinstance(images, Tensor):
        return tuple(images.shape[1:])
    return tuple(images.description.get("image_shape", ())) or None


def check_comparable(
    shape: tuple[int, ...],
    reference: Tensor | FeatureStatistics,
    extractor: FeatureExtractor,
    floor: Tensor | None = None,
) -> None:
    """Raise ValueError unless samples (C, H, W) can be compared: by shape and by extractor."""
    for name, images in (("reference", reference), ("floor", floor)):
        other = None if images is None else image_shape(images)
        if other not in (None, shape):
            raise ValueError(f"{name} must have the samples' shape {shape} (C, H, W), got {other}")
    one = extract_features(torch.zeros(1, *shape, dtype=torch.uint8), extractor).features
    if isinstance(reference, Tensor):
        return
    made_with = reference.description.get("extractor")
    if made_with not in (None, extractor.describe()):
        raise ValueError(
            f"the saved statistics were made with {made_with}, not with {extractor.describe()}"
        )
    if len(reference.mean) != one.shape[1]:
        raise ValueError(
            f"the saved statistics must have dimension {one.shape[1]}, as {extractor.name} has, "
            f"got {len(reference.mean)}"
        )


def warn(n: int, reference: FeatureStatistics, n_floor: int) -> Iterator[str]:
    """Sentences on too few samples, real images, or images of the floor."""
    d = len(reference.mean)
    counts = {"samples": n, "real images": reference.count or 0, "images of the floor": n_floor}
    for name, count in counts.items():
        if 0 < count < d:
            yield f"{count:,} {name} are fewer than the {d:,} features: the distance is biased up"
    if n_floor and n_floor != n:
        yield f"the floor is of {n_floor:,} images, not {n:,}: fewer images, larger distance"
    if "extractor" not in reference.description:
        yield (
            "the statistics of the reference state neither their extractor nor the number of "
            "images and their resize, and the distance depends on all of them"
        )


def has_fidelity() -> bool:
    """Whether torch-fidelity, the extra "fid", is there."""
    return find_spec("torch_fidelity") is not None


def fidelity_scores(samples: Features, real: Tensor | None) -> dict[str, float]:
    """Scores of images by their features, and by their class logits if they have some.

    real: features (M, D) of real images, None if these are not known. Needs torch-fidelity. The
    result has, as far as they can be had,

    kernel_distance, kernel_distance_deviation: squared maximum mean discrepancy under the kernel
    (x'y / D + 1)^3, mean and standard deviation over 100 subsets of 1,000 images, or of all if
    there are fewer (Binkowski et al., ICLR 2018).
    precision, recall: fractions of the samples near real images, and of real images near samples.
    An image is near a set if it is as near to one of its images as that one's third-nearest
    neighbour in the set (Kynkäänniemi et al., NeurIPS 2019). At most as many real images as samples
    are taken, in a fixed random order; there must be four.
    inception_score, inception_score_deviation: exp E[KL(p(y | x) || p(y))] over the classes y, mean
    and standard deviation over ten parts (Salimans et al., 2016).
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
    return scores
