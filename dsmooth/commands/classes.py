"""`dsmooth evaluate classify`, and the numbers of single classes in the other measures."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

from torch import Tensor

from .._version import __version__
from ..data import ImageDataset
from ..distributed import rank_and_size
from ..evaluate.classes import (
    ClassBits,
    ClassDistance,
    Classification,
    bits_by_class,
    classify,
    frechet_by_class,
)
from ..evaluate.features import FeatureExtractor
from ..evaluate.likelihood import Scores
from ..evaluate.sources import ImageSet, choose_data
from ..files import write_json
from ..machine import default_device
from ..models import load_models
from ..progress import progress
from ..tables import Table, decimals
from .options import BitsOptions, ClassifyOptions, FrechetOptions

NO_LABELS = "--per-class needs labelled images, but {} has no labels"


def evaluate_classify(options: ClassifyOptions) -> None:
    """`dsmooth evaluate classify`."""
    models = load_models(options.models).to(default_device())
    if models.smoothed is not None and models.plain is not None:
        raise ValueError("name a pair or a plain model: one of them classifies at a time")
    model = models.smoothed or next(iter(models.networks.values()))
    choice = choose_data(models, options.data, options.data_dir, options.image_size)
    dataset = choice.load(options.split)
    n = len(dataset) if options.limit is None else min(options.limit, len(dataset))
    with progress("classifying", n) as done:
        result = classify(
            model,
            dataset,
            limit=options.limit,
            n_noise=options.n_noise,
            batch_size=options.batch_size,
            seed=options.seed,
            progress=done,
        )
    if rank_and_size()[0] > 0:
        return
    draws = options.n_noise if models.smoothed is not None else None
    write_json(
        options.out,
        {
            "dsmooth": __version__,
            "accuracy": result.accuracy,
            "accuracy_error": result.accuracy_error,
            "bits": result.bits,
            "confusion": result.confusion().tolist(),
            "exact": draws is None,
            "n_noise": draws,
            "n_images": n,
            "data": {"name": dataset.name, "split": dataset.split, "source": dataset.source},
            "seed": options.seed,
            "weights_sha256": list(models.digests().values()),
        },
    )
    for line in in_words(result, dataset, draws):
        print(line)
    print(f"wrote {options.out}")


def in_words(result: Classification, dataset: ImageDataset, draws: int | None) -> Sequence[str]:
    """The result in lines. draws: of x~ for a bound, None for exact likelihoods."""
    error = result.accuracy_error
    how = (
        "by exact likelihoods"
        if draws is None
        else f"by importance-weighted bounds of {draws} draw{'s' * (draws > 1)}"
    )
    k = result.log_likelihoods.shape[1]
    return [
        f"{100 * result.accuracy:.2f} %{'' if error is None else f' ± {100 * error:.2f}'} of "
        f"{len(result.labels):,} images classified correctly, {dataset.source}, {dataset.split}",
        f"p(label | x) of the true label: {result.bits:.4f} bits ({math.log2(k):.2f} by chance)",
        f"Bayes' rule over {k} classes, all as likely beforehand, {how}",
    ]


def bits_of_classes(every: Mapping[str, Scores], dataset: ImageDataset) -> dict[str, Any]:
    """The rows of each class of the scored images, for a pair and a plain model, as JSON."""
    if dataset.labels is None:
        raise ValueError(NO_LABELS.format(dataset.source))
    rows = {
        name: bits_by_class(scores, dataset.labels[: scores.n_images])
        for name, scores in every.items()
    }
    head = ["class", "images", *(f"{name}: bits/dim" for name in rows)]
    lines = [bits_row(same) for same in zip(*rows.values(), strict=True)]
    Table(head, lines, "bits/dim of each class").show()
    return {name: [asdict(row) for row in found] for name, found in rows.items()}


def bits_row(same: Sequence[ClassBits]) -> list[str]:
    """A row of a table, for one class."""
    values = (decimals(row.value, error=row.standard_error) for row in same)
    return [str(same[0].label), f"{same[0].n_images:,}", *values]


def check_per_class(options: BitsOptions | FrechetOptions, *datasets: ImageDataset) -> None:
    """Raise ValueError, before any work, where --per-class cannot be."""
    if not options.per_class:
        return
    if isinstance(options, FrechetOptions):
        if options.label != "each":
            raise ValueError("--per-class needs --label each")
        if options.reference is not None:
            raise ValueError("--per-class needs real images, not the statistics of --reference")
    for dataset in datasets:
        if dataset.labels is None:
            raise ValueError(NO_LABELS.format(dataset.source))


def of_class(dataset: ImageDataset, label: int) -> ImageDataset:
    """The images of one class. Raises ValueError where there are fewer than two."""
    if dataset.labels is None:
        raise ValueError(f"--label {label} needs labelled images, but {dataset.source} has none")
    chosen = dataset.labels == label
    if int(chosen.sum()) < 2:
        raise ValueError(f"{dataset.source} has fewer than two images of class {label}")
    return replace(dataset, images=dataset.images[chosen], labels=dataset.labels[chosen])


def distances_of_classes(
    samples: ImageSet,
    labels: Tensor | None,
    real: ImageDataset,
    other: ImageDataset,
    extractor: FeatureExtractor,
    batch_size: int,
) -> list[dict[str, Any]]:
    """The rows of each class, as JSON; also printed. labels: of the samples."""
    if labels is None:
        raise ValueError("--per-class needs samples of models with classes")
    if samples.diverged:
        raise ValueError(
            f"--per-class needs the class of every sample, but {samples.diverged:,} were left out"
        )
    assert real.labels is not None  # `check_per_class` has seen them
    assert other.labels is not None
    rows = frechet_by_class(
        (samples.images, labels[: len(samples.images)]),
        (real.images, real.labels),
        (other.images, other.labels),
        extractor,
        batch_size=batch_size,
        progress=progress,
    )
    if rank_and_size()[0] == 0:
        head = ["class", "samples", "real images", "distance", "of other real images"]
        lines = [distance_row(row) for row in rows]
        Table(head, lines, f"{extractor.distance_name} of each class").show()
    return [asdict(row) for row in rows]


def distance_row(row: ClassDistance) -> list[str]:
    """A row of a table, for one class."""
    counts = f"{row.n_samples:,}", f"{row.n_reference:,}"
    return [str(row.label), *counts, decimals(row.value), decimals(row.floor)]
