"""Sets of images against real ones: every distance and score, with its name and its floor."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from importlib.util import find_spec

from torch import Tensor

from ..data import epoch_order
from ..progress import progress_of
from ..results import FLOOR, Distance, FidelityScores, FrechetResult
from .features import (
    FeatureExtractor,
    Features,
    extract_features,
    probe_image,
    probe_output,
    same_outputs,
)
from .frechet import FeatureStatistics, StatisticsSource, bootstrap_error

# Settings of torch-fidelity and of the authors, for as many images.
SUBSET_SIZE, SPLITS, NEIGHBOURS = 1000, 10, 3


@dataclass(frozen=True, eq=False)
class Reference:
    """Real images to compare with: statistics of their features, and the features (M, D) if known.

    Without the features there is no kernel distance, precision or recall.
    """

    statistics: FeatureStatistics
    features: Tensor | None = None

    @classmethod
    def of_images(
        cls,
        images: Tensor,
        extractor: FeatureExtractor,
        *,
        progress: bool = False,
        source: StatisticsSource | None = None,
    ) -> Reference:
        """The reference of bytes (N, C, H, W), N >= 2; source: which images they are."""
        features = extract_features(images, extractor, progress=progress, title="real images")[0]
        shape = tuple(images.shape[1:])
        probe = probe_output(extract_features(probe_image(shape), extractor).features)
        source, facts = source or StatisticsSource(), extractor.describe()
        source = replace(source, extractor=facts, image_shape=shape, probe=probe)
        return cls(FeatureStatistics.of_batches(features.split(1000), source), features)


def compare_images(
    sets: Mapping[str, Tensor],
    reference: Reference,
    extractor: FeatureExtractor,
    *,
    seed: int = 0,
    progress: bool = False,
) -> FrechetResult:
    """Compare sets of images with `reference` by the features of `extractor`.

    sets: bytes (N, C, H, W), N >= 2, by name. "real" are images of the data that are not in the
    reference: their distance, the floor, is what a perfect model would get with as many samples.
    seed: of the bootstrap. progress: whether to show bars. Features of all images of a set are kept
    in memory: 4 N D bytes.

    Raises ValueError for images that do not fit together and statistics of another extractor.
    """
    for images in sets.values():
        check_comparable(tuple(images.shape[1:]), reference.statistics, extractor)
    measured = {name: x for name, x in sets.items() if name != FLOOR or len(x) > 1}

    def distance(name: str, images: Tensor) -> Distance:
        title, real = "the floor" if name == FLOOR else name, reference.statistics
        features = extract_features(images, extractor, progress=progress, title=title)
        rows = features.features
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
        dimension=len(reference.statistics.mean),
        n_reference=reference.statistics.count,
        distances={name: distance(name, images) for name, images in measured.items()},
        warnings=tuple(warn(sets, reference.statistics)),
    )


def black_share(images: Tensor) -> float:
    """The share of pixels of bytes (N, C, H, W) that are black in every colour."""
    return float((images.amax(1) == 0).double().mean())


def image_shape(images: Tensor | FeatureStatistics) -> tuple[int, ...] | None:
    """(C, H, W) of images, or of those that statistics are of, None if they do not say."""
    if isinstance(images, Tensor):
        return tuple(images.shape[1:])
    return images.source.image_shape


def check_comparable(
    shape: tuple[int, ...], reference: Tensor | FeatureStatistics, extractor: FeatureExtractor
) -> None:
    """Raise ValueError unless samples (C, H, W) can be compared: by shape and by extractor."""
    other = image_shape(reference)
    if other not in (None, shape):
        raise ValueError(f"reference must have the samples' shape {shape} (C, H, W), got {other}")
    features = extract_features(probe_image(shape), extractor).features
    if isinstance(reference, Tensor):
        return
    made_with = reference.source.extractor
    if made_with not in (None, extractor.describe()):
        raise ValueError(
            f"the saved statistics were made with {made_with}, not with {extractor.describe()}"
        )
    if len(reference.mean) != features.shape[1]:
        raise ValueError(
            f"the saved statistics must have dimension {features.shape[1]}, as {extractor.name} "
            f"has, got {len(reference.mean)}"
        )
    probe = reference.source.probe
    if probe is not None and not same_outputs(probe, probe_output(features)):
        raise ValueError(
            f"the saved statistics were made with another {extractor.name}: of the same image it "
            "had other features"
        )


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
    if reference.source.extractor is None:
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
