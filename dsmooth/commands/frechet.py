"""`dsmooth evaluate fid`: distances and scores of samples, drawn or read."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any

from torch import Tensor

from ..data import SPLITS, ImageDataset
from ..data.order import choose_images
from ..distributed import barrier, rank_and_size
from ..evaluate.classes import frechet_by_class
from ..evaluate.comparison import Comparison, check_statistics, compare_images
from ..evaluate.features import FeatureExtractor, extract_features, import_fidelity, make_extractor
from ..evaluate.frechet import FeatureStatistics, Statistics
from ..evaluate.scores import KernelDistance
from ..evaluate.sources import (
    BYTES,
    DataChoice,
    ImageSet,
    as_grey,
    choose_data,
    describe_data,
    read_images,
    read_reference,
)
from ..fields import ArgumentError
from ..machine import choose_device
from ..models import Models, load_models
from ..pretrained import is_model
from ..progress import progress, significant
from ..tables import Table, decimals
from .options import Drawing, FrechetOptions
from .sample import check_output, check_outputs, prepare, request_of, sample_to_files

DEFAULT_COUNT = 1000


def evaluate_frechet(options: FrechetOptions) -> dict[str, Any]:
    """The numbers of `dsmooth evaluate fid`, which are printed too."""
    if options.save_reference:
        check_output(options.save_reference, ".npz", "--save-reference")
    if options.per_class and options.label != "each":
        raise ValueError("--per-class needs --label each")
    if options.per_class and options.reference is not None:
        raise ValueError("--per-class needs the images of a data set, not --reference")
    if options.precision_recall:
        import_fidelity("metric_prc", "--precision-recall needs")
    device = choose_device(options.execution.device)
    extractor = make_extractor(options.extractor, weights=options.weights, device=device)
    models = models_to_draw(options)
    choice = choose_data(models, **vars(options.dataset))
    real, described, others = load_real(options, choice, models)
    reference = real.images if isinstance(real, ImageDataset) else real
    if options.save_reference and not isinstance(reference, Tensor):
        raise ValueError("--save-reference needs real images, not the statistics of --reference")
    # A misfit is refused before anything is drawn.
    if options.per_class and (models is None or models.n_classes == 0):
        raise ValueError("--per-class needs samples of models with classes")
    if others is not None:
        if models is not None:
            check_shape(options, models.image_shape, others)
        features, _ = extract_features(others.images[:1], extractor)
        if not isinstance(reference, Tensor):
            check_statistics(reference, extractor, features.shape[1])
    samples, how, labels = collect_samples(options, models)
    shape = samples.images.shape[1:]
    if others is not None:
        shape = others.images.shape[1:]
    elif isinstance(reference, Tensor):
        shape = reference.shape[1:]
    elif isinstance(reference, FeatureStatistics):
        shape = reference.description.get("image_shape", shape)
    if shape[0] == 1:
        samples = replace(samples, images=as_grey(samples.images))
    if others is not None:
        check_shape(options, tuple(samples.images.shape[1:]), others)
    result = compare_images(
        samples.images,
        reference,
        extractor,
        floor=None if others is None else choose_images(others, len(samples.images)),
        batch_size=options.batch_size,
        subsets=options.subsets,
        subset_size=options.subset_size,
        seed=options.seed,
        precision_recall=options.precision_recall,
        progress=progress,
    )
    warnings = list(result.warnings)
    if samples.diverged:
        warnings.append(f"{samples.diverged:,} samples with infinite values were left out")
    numbers = {
        **result.as_json(),
        "warnings": warnings,
        "samples": {"source": samples.source, "left_out": samples.diverged, **how},
        "reference": described,
        "floor_images": None
        if others is None
        else {**describe_data(others), "n_images": result.n_floor},
        "bytes": BYTES,
        "seed": options.seed,
    }
    print_comparison(numbers, result)
    if options.per_class and isinstance(real, ImageDataset) and labels is not None:
        numbers["classes"] = distances_of_classes(
            samples, labels, (real, others), extractor, options.batch_size
        )
    made = result.reference
    if options.save_reference and rank_and_size()[0] == 0:
        assert isinstance(made, FeatureStatistics)
        made.description |= described
        made.save(options.save_reference)
        print(f"wrote {options.save_reference}")
    return numbers


def check_shape(options: FrechetOptions, shape: tuple[int, ...], real: ImageDataset) -> None:
    """Raise ValueError unless the samples are of the real images' shape (C, H, W)."""
    wanted = tuple(real.images.shape[1:])
    if shape == wanted or (wanted[0] == 1 and shape == (3, *wanted[1:])):
        return
    named = options.dataset.data is not None
    taken = "" if named else f"--data was not named, so {real.name} was taken: "
    raise ValueError(
        f"{taken}the real images are (C, H, W) = {wanted}, the samples of "
        f"{', '.join(map(str, options.samples))} are {shape}"
    )


def load_real(
    options: FrechetOptions, choice: DataChoice, models: Models | None
) -> tuple[ImageDataset | Tensor | Statistics, dict[str, Any], ImageDataset | None]:
    """The reference and its description; the images of the floor.

    There is no floor if neither the file, --data nor the models say which data set the reference is
    of. Statistics that were saved here are of the floor's data set and label.
    """

    def load(split: str) -> ImageDataset:
        dataset = choice.load(split)
        if options.per_class:
            dataset.known_labels("per_class")
        if options.label == "each":
            return dataset
        found = dataset.part(dataset.known_labels("label") == options.label)
        if len(found) < 2:
            raise ValueError(f"{dataset.source} has fewer than two images of class {options.label}")
        source = f"{len(found):,} images of class {options.label} of {dataset.source}"
        return replace(found, source=source)

    other_split = next(split for split in SPLITS if split != options.split)
    if options.reference is None:
        dataset, others = load(options.split), load(other_split)
        asked = {"label": options.label, "floor_sha256": others.digest}
        return dataset, describe_data(dataset) | asked, others
    found = read_reference(options.reference)
    known = options.dataset.data is not None or models is not None
    if isinstance(found, FeatureStatistics):
        keys = ("name", "split", "source", "label")
        described = {key: found.description.get(key) for key in keys}
        if described["split"] == other_split:
            raise ValueError(
                f"{options.reference} is of the {other_split} images, which give the floor: "
                f"add --split {other_split}"
            )
        if described["label"] not in (None, options.label):
            raise ValueError(f"{options.reference} needs --label {described['label']}")
        if described["name"] not in (None, choice.name):
            if options.dataset.data is not None:
                raise ValueError(
                    f"{options.reference} is of {described['name']}, not of --data {choice.name}"
                )
            choice = choose_data(models, **{**vars(options.dataset), "data": described["name"]})
        known |= described["name"] is not None
    else:
        described = {"source": str(found.source)}
    if options.precision_recall and not isinstance(found, ImageSet):
        raise ValueError("--precision-recall needs real images, not the statistics of --reference")
    real = as_grey(found.images) if isinstance(found, ImageSet) else found
    floor = load(other_split) if known else None
    stated = found.description.get("floor_sha256") if isinstance(found, FeatureStatistics) else None
    if floor is not None and stated not in (None, floor.digest):
        raise ValueError(
            f"{options.reference} was saved with other {other_split} images than those of "
            f"{floor.source}: name its own data"
        )
    return real, described, floor


def models_to_draw(options: FrechetOptions) -> Models | None:
    """The models that the samples are drawn from; None for one file or folder of images."""
    samples = options.samples
    if not samples:
        raise ValueError("name models to draw from, or a file or folder of images")
    if all(map(is_model, samples)):
        if options.keep and options.keep.suffix:
            raise ArgumentError("keep", f"must be a folder, without a suffix, got {options.keep}")
        return load_models(samples)
    if len(samples) > 1:
        raise ValueError(
            "name two run folders, or a single file or folder of images, got "
            f"{', '.join(map(str, samples))}"
        )
    for name in ("method", "guidance", "temperature", "keep"):
        if getattr(options, name) != getattr(FrechetOptions, name):
            raise ArgumentError(name, f"is for models to draw from, not for {samples[0]}")
    return None


def collect_samples(
    options: FrechetOptions, models: Models | None
) -> tuple[ImageSet, dict[str, Any], Tensor | None]:
    """The images to measure, drawn or read, how they were drawn, and their labels if they have."""
    if models is None:
        return read_images(options.samples[0], options.count), {}, None
    count = DEFAULT_COUNT if options.count is None else options.count
    label = options.label if models.n_classes or options.label != "each" else None
    names = ("seed", "method", "guidance", "temperature")
    named: dict[str, Any] = {name: getattr(options, name) for name in names}
    request = request_of(models, Drawing(label=label, **named), count)
    identity = {**request.identity(), "weights_sha256": list(models.digests().values())}
    if options.execution.precision != "auto":
        identity["precision"] = options.execution.precision
    # Other settings or weights go to another folder, so that nothing has to be deleted.
    digest = hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:8]
    keep = options.keep or options.out.parent / f"samples-{options.method}-{count}-{digest}"
    check_outputs([keep], count)
    sample_to_files(models, request, prepare(options.execution, models, keep), [keep])
    barrier()
    return read_images(keep), identity, request.labels(models.n_classes)


def print_comparison(numbers: dict[str, Any], result: Comparison) -> None:
    """Print the table of distances and scores, their data and the extractor."""
    words = f"{result.name}, ± standard error by the bootstrap"
    floor = decimals(result.floor, error=result.floor_error)
    rows = [[words, decimals(result.value, error=result.error), floor]]
    if result.kernel:
        words = f"{result.kernel_name}, ± standard deviation of {result.kernel.subsets} subsets"
        rows.append([words, spread(result.kernel), spread(result.kernel_floor)])
    if result.score:
        real = None if result.real_score is None else result.real_score.value
        rows.append([result.score_name, decimals(result.score.value), decimals(real)])
    if result.precision_recall:
        other = result.precision_recall_floor
        for name in ("precision", "recall"):
            both = (getattr(each, name, None) for each in (result.precision_recall, other))
            rows.append([f"{name.title()} on {result.extractor['name']}", *map(decimals, both)])
    head = ["", f"{result.n_samples:,} samples", f"{result.n_floor:,} real images"]
    count = "" if result.n_reference is None else f"{result.n_reference:,} "
    title = f"{numbers['samples']['source']} against {count}real images"
    Table(head, rows, title).show()
    reference, extractor = numbers["reference"], result.extractor
    facts = (f"{count}images", reference.get("source", "saved statistics"), reference.get("split"))
    print(
        f"Reference: {', '.join(filter(None, facts))}. Extractor: {extractor['name']}, sha256 "
        f"{extractor['sha256'][:16]}, {extractor['dimension']:,} features, resize: "
        f"{extractor['resize']}. Values become bytes: {BYTES}."
    )
    for warning in numbers["warnings"]:
        print(f"warning: {warning}")


def spread(distance: KernelDistance | None) -> str:
    """Mean ± standard deviation over subsets, or a dash."""
    if distance is None:
        return decimals(None)
    return f"{significant(distance.value, 4)} ± {significant(distance.standard_deviation, 2)}"


def distances_of_classes(
    samples: ImageSet,
    labels: Tensor,
    real: Sequence[Any],
    extractor: FeatureExtractor,
    batch_size: int,
) -> list[dict[str, Any]]:
    """The rows of each class as JSON, also printed. real: data sets of the reference and floor."""
    drawn = samples.images, labels[samples.kept]
    reference, others = ((each.images, each.labels) for each in real)
    how: dict[str, Any] = {"batch_size": batch_size, "progress": progress}
    found = frechet_by_class(drawn, reference, others, extractor, **how)
    rows = []
    for row in found:
        counts = f"{row.n_samples:,}", f"{row.n_reference:,}"
        distances = decimals(row.value, error=row.error), decimals(row.floor)
        rows.append([str(row.label), *counts, *distances])
    head = ["class", "samples", "real images", "distance", "of other real images"]
    Table(head, rows, f"{extractor.distance_name} of each class").show()
    return list(map(asdict, found))
