"""`dsmooth evaluate fid`: distances and scores of samples, drawn or read."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, replace
from typing import Any

from torch import Tensor

from ..data import SPLITS, ImageDataset
from ..data.order import choose_images
from ..distributed import barrier, rank_and_size
from ..evaluate.classes import frechet_by_class
from ..evaluate.comparison import Comparison, check_statistics, compare_images, image_shape
from ..evaluate.features import FeatureExtractor, extract_features, make_extractor
from ..evaluate.frechet import FeatureStatistics
from ..evaluate.scores import has_fidelity
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
from ..files import check_writable, printable
from ..machine import choose_device
from ..models import Models, class_number, load_models
from ..pretrained import is_model
from ..progress import progress, significant
from ..tables import Table, decimals
from .options import Drawing, FrechetOptions
from .sample import check_output, draw_into, prepare, request_of

DEFAULT_COUNT = 1000


def evaluate_frechet(options: FrechetOptions) -> dict[str, Any]:
    """The numbers of `dsmooth evaluate fid`, which are printed too."""
    if options.save_reference:
        check_output(options.save_reference, ".npz", "--save-reference")
    if options.per_class and options.label != "each":
        raise ValueError("--per-class needs --label each")
    if options.per_class and options.reference is not None:
        raise ValueError("--per-class needs the images of a data set, not --reference")
    extractor = make_extractor(options.extractor, device=choose_device(options.execution.device))
    models, images = models_to_draw(options), options.dataset
    choice = choose_data(models, images.data, images.data_dir, images.image_size)
    real, source, floor = load_real(options, choice, models)
    reference = real if isinstance(real, FeatureStatistics) else real.images
    if options.save_reference and not isinstance(reference, Tensor):
        raise ValueError("--save-reference needs real images, not the statistics of --reference")
    # A misfit is refused before anything is drawn.
    if options.per_class and (models is None or models.n_classes == 0):
        raise ValueError("--per-class needs samples of models with classes")
    if floor is not None:
        if models is not None:
            check_shape(options, models.image_shape, floor)
        features, _ = extract_features(floor.images[:1], extractor)
        if isinstance(reference, FeatureStatistics):
            check_statistics(reference, extractor, features.shape[1])
    samples, drawing, labels = collect_samples(options, models)
    shape = image_shape(reference if floor is None else floor.images)
    if shape is not None and shape[0] == 1:
        samples = replace(samples, images=as_grey(samples.images))
    if floor is not None:
        check_shape(options, tuple(samples.images.shape[1:]), floor)
    result = compare_images(
        samples.images,
        reference,
        extractor,
        floor=None if floor is None else choose_images(floor, len(samples.images)),
        seed=options.seed,
        progress=progress,
    )
    warnings = list(result.warnings)
    if samples.diverged:
        warnings.append(f"{samples.diverged:,} samples with infinite values were left out")
    numbers = {
        **result.as_json(),
        "warnings": warnings,
        "samples": {"source": samples.source, "left_out": samples.diverged, **drawing},
        "reference": source,
        "floor_images": None
        if floor is None
        else {**describe_data(floor), "n_images": result.n_floor},
        "bytes": BYTES,
        "seed": options.seed,
    }
    print_comparison(numbers, result)
    if options.per_class and isinstance(real, ImageDataset) and floor and labels is not None:
        numbers["classes"] = distances_of_classes(
            samples,
            labels,
            (real.images, real.known_labels()),
            (floor.images, floor.known_labels()),
            extractor,
        )
    if options.save_reference and rank_and_size()[0] == 0:
        result.reference.description.update(source)
        result.reference.save(options.save_reference)
        print(f"wrote {printable(options.save_reference)}")
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
) -> tuple[ImageDataset | ImageSet | FeatureStatistics, dict[str, Any], ImageDataset | None]:
    """The reference and its description; the images of the floor.

    There is no floor if neither the file, --data nor the models say which data set the reference is
    of. Statistics that were saved here are of the floor's data set, split and label.
    """

    def load(split: str) -> ImageDataset:
        dataset = choice.load(split)
        if options.per_class or options.label != "each":
            dataset.known_labels("per_class" if options.per_class else "label")
            if models is not None and not dataset.has_classes(models.class_names):
                names = ", ".join(models.class_names)
                raise ValueError(f"{dataset.source} has labels of other classes than {names}")
        label = class_number(options.label, dataset.class_names)
        if label == "each":
            return dataset
        part = dataset.part(dataset.known_labels("label") == label)
        if len(part) < 2:
            raise ValueError(f"{dataset.source} has fewer than two images of class {options.label}")
        source = f"{len(part):,} images of class {options.label} of {dataset.source}"
        return replace(part, source=source)

    other_split = next(split for split in SPLITS if split != options.split)
    if options.reference is None:
        dataset, others = load(options.split), load(other_split)
        facts = {"label": options.label, "floor_sha256": others.digest}
        return dataset, describe_data(dataset) | facts, others
    reference = read_reference(options.reference)
    known = options.dataset.data is not None or models is not None
    if isinstance(reference, ImageSet):
        images = replace(reference, images=as_grey(reference.images))
        return images, {"source": reference.source}, load(other_split) if known else None
    saved = reference.description
    named = {"data": choice.name, "split": options.split, "label": options.label}
    for option, value in named.items():
        stated = saved.get("name" if option == "data" else option, value)
        if stated != value:
            raise ValueError(
                f"`{option}` must be {stated}, as {options.reference} was saved, got {value}"
            )
    floor = load(other_split) if known or "name" in saved else None
    if floor is not None and saved.get("floor_sha256", floor.digest) != floor.digest:
        raise ValueError(
            f"{options.reference} was saved with other {other_split} images than "
            f"{floor.source} has: name its own data"
        )
    described: dict[str, Any] = {"source": str(options.reference)}
    described |= {key: saved[key] for key in ("name", "split", "source", "label") if key in saved}
    return reference, described, floor


def models_to_draw(options: FrechetOptions) -> Models | None:
    """The models that the samples are drawn from; None for one file or folder of images."""
    samples = options.samples
    if not samples:
        raise ValueError("name models to draw from, or a file or folder of images")
    if all(map(is_model, samples)):
        return load_models(samples)
    if len(samples) > 1:
        raise ValueError(
            "name two run folders, or a single file or folder of images, got "
            f"{', '.join(map(str, samples))}"
        )
    return None


def collect_samples(
    options: FrechetOptions, models: Models | None
) -> tuple[ImageSet, dict[str, Any], Tensor | None]:
    """The images to measure, drawn or read, how they were drawn, and their labels if they have."""
    if models is None:
        return read_images(options.samples[0], options.count), {}, None
    count = DEFAULT_COUNT if options.count is None else options.count
    label = options.label if models.n_classes or options.label != "each" else None
    request = request_of(models, Drawing(seed=options.seed, label=label), count)
    identity = {**request.identity(), "weights_sha256": list(models.digests().values())}
    if options.execution.precision != "auto":
        identity["precision"] = options.execution.precision
    # Other settings or weights go to another folder, so that nothing has to be deleted.
    digest = hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:8]
    folder = options.out.parent / f"samples-{count}-{digest}"
    check_writable(folder)
    prepare(options.execution, models, folder)
    draw_into(folder, models, request, options.execution.precision)
    barrier()
    return read_images(folder), identity, request.labels(models.n_classes)


def print_comparison(numbers: dict[str, Any], result: Comparison) -> None:
    """Print the table of distances and scores, their data and the extractor."""
    words = f"{result.name}, ± standard error by the bootstrap"
    floor = decimals(result.floor, error=result.floor_error)
    rows = [[words, decimals(result.value, error=result.error), floor]]
    fid = result.name == "FID"
    for key, name in (
        ("kernel_distance", "KID" if fid else "Kernel distance"),
        ("inception_score", "Inception score" if fid else "Inception-style score"),
        ("precision", "Precision"),
        ("recall", "Recall"),
    ):
        if key in result.scores:
            words = f"{name}{', ± standard deviation' * (f'{key}_deviation' in result.scores)}"
            rows.append([words, spread(result.scores, key), spread(result.floor_scores, key)])
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
    if not has_fidelity():
        print("Kernel distance, Inception score, precision, recall: pip install 'dsmooth[fid]'")
    for warning in numbers["warnings"]:
        print(f"warning: {warning}")


def spread(scores: dict[str, float], key: str) -> str:
    """A score, with its standard deviation if there is one; a dash where there is no score."""
    if key not in scores:
        return decimals(None)
    deviation = scores.get(f"{key}_deviation")
    error = "" if deviation is None else f" ± {significant(deviation, 2)}"
    return f"{significant(scores[key], 4)}{error}"


def distances_of_classes(
    samples: ImageSet,
    labels: Tensor,
    reference: tuple[Tensor, Tensor],
    floor: tuple[Tensor, Tensor],
    extractor: FeatureExtractor,
) -> list[dict[str, Any]]:
    """The rows of each class as JSON, also printed. labels: also of samples that were left out."""
    drawn = samples.images, labels[samples.kept]
    classes = frechet_by_class(drawn, reference, floor, extractor, progress=progress)
    rows = []
    for row in classes:
        counts = f"{row.n_samples:,}", f"{row.n_reference:,}"
        distances = decimals(row.value, error=row.error), decimals(row.floor)
        rows.append([str(row.label), *counts, *distances])
    head = ["class", "samples", "real images", "distance", "of other real images"]
    Table(head, rows, f"{extractor.distance_name} of each class").show()
    return list(map(asdict, classes))
