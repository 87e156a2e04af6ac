"""`dsmooth evaluate ...`: models and images from folders, numbers onto the screen and into JSON."""

from __future__ import annotations

import hashlib
import json
import math
import sys
from collections.abc import Mapping
from contextlib import nullcontext, redirect_stdout
from dataclasses import dataclass, replace
from os.path import realpath
from pathlib import Path

from torch import Tensor

from .._version import __version__
from ..data import SPLITS, ImageDataset, load_dataset
from ..data.order import choose_images
from ..distributed import barrier, process_group, rank_and_size
from ..evaluate.classes import bits_by_class, classify, frechet_by_class
from ..evaluate.comparison import (
    Comparison,
    check_comparable,
    compare_images,
    has_fidelity,
    image_shape,
)
from ..evaluate.features import make_extractor
from ..evaluate.frechet import FeatureStatistics
from ..evaluate.likelihood import Scores, measure_bits
from ..evaluate.sources import ImageSet, as_grey, read_images, read_reference
from ..fields import Json, check_number
from ..files import check_writable, json_text, printable, write_json
from ..machine import autocast, choose_device, use_threads
from ..nn.condition import class_number
from ..pretrained import Loaded, is_model, load_models
from ..progress import progress, significant, silence
from ..tables import COMPARABLE, Table, bits_table, decimals
from .options import BitsOptions, ClassifyOptions, DataOptions, Drawing, FrechetOptions
from .sample import check_output, draw_into, prepare, request_of

STDOUT = Path("-")
BYTES = "x in [-1, 1] to round((x + 1) * 127.5), clamped to 0 .. 255"


@dataclass(frozen=True)
class DataChoice:
    """The arguments of `load_dataset` for a data set; of the split, the one to measure.

    measured: "test", or "all" where the models were not trained on the folder of images.
    """

    name: str
    data_dir: str | None
    image_size: int | None
    measured: str = "test"

    def load(self, split: str | None = None) -> ImageDataset:
        """The images of a split, showing how many files are decoded."""
        split, size = split or self.measured, self.image_size
        return load_dataset(self.name, split, self.data_dir, image_size=size, progress=True)


def choose_data(models: Loaded | None, options: DataOptions) -> DataChoice:
    """The data set of the options, else the one that the first of the models was trained on.

    A run knows its folder too. Without models it is mnist.
    """
    name, image_size, trained_on = options.data, options.image_size, None
    folder = None if options.data_dir is None else str(options.data_dir)
    run = next(iter(models.runs.values()), None) if models is not None else None
    settings = run.read_config()[0] if run is not None else None
    if settings is not None and name in (None, settings.data):
        name, trained_on = settings.data, settings.data_dir
        folder, image_size = folder or trained_on, image_size or settings.image_size
    if name is None:
        records = map(models.record, models.networks) if models is not None else ()
        name = next((record.data for record in records if record is not None), "mnist")
    is_known = trained_on is not None and realpath(trained_on) == realpath(folder or "")
    measured = "all" if name == "folder" and not is_known else "test"
    return DataChoice(name, folder, image_size, measured)


def describe_data(dataset: ImageDataset) -> Json:
    """The images behind a number, as JSON."""
    return {"name": dataset.name, "split": dataset.split, "source": dataset.source}


def evaluate(options: BitsOptions | FrechetOptions | ClassifyOptions) -> None:
    """Carry out one command. Raises ValueError, OSError or ImportError for what does not fit."""
    use_threads(options.execution.threads)
    if isinstance(options, FrechetOptions):
        if options.count is not None:
            check_number("count", options.count)
        check_number("seed", options.seed, 0, 2**64 - 1)
    screen, aside, first = sys.stdout, options.out == STDOUT, rank_and_size()[0] == 0
    if not aside:
        check_output(options.out, ".json")
    redirected = redirect_stdout(sys.stderr) if aside and first else nullcontext()
    with silence() if options.execution.quiet else redirected:
        with process_group():
            if isinstance(options, BitsOptions):
                numbers = evaluate_bits(options)
            elif isinstance(options, FrechetOptions):
                numbers = evaluate_frechet(options)
            else:
                numbers = evaluate_classify(options)
        numbers = {"dsmooth": __version__, **numbers}
        if first and aside:
            print(json_text(numbers), end="", file=screen)
        elif first:
            write_json(options.out, numbers)
            print(f"wrote {printable(options.out)}")


def evaluate_bits(options: BitsOptions) -> Json:
    """`dsmooth evaluate bpd`."""
    device = choose_device(options.execution.device)
    models = load_models([*options.models, *filter(None, [options.plain])])
    dataset = choose_data(models, options.dataset).load(options.split)
    if options.per_class:
        dataset.known_labels("per_class")  # refused before any work
    result, scores = measure_bits(
        models.to(device),
        dataset,
        limit=options.limit,
        n_noise=options.n_noise,
        batch_size=options.batch_size,
        seed=options.seed,
        precision=options.execution.precision,
    )
    n = next(iter(scores.values())).n_images
    result |= {"data": {**describe_data(dataset), "n_images": n}, "seed": options.seed}
    if models.class_names and not dataset.has_classes(models.class_names):
        print(
            f"{dataset.name} has no labels of the model's classes {models.class_names[0]} to "
            f"{models.class_names[-1]}: a label of zeros stands for all of them"
        )
    bits_table(result, f"bits/dim · {dataset.source}, {dataset.split}: {n:,} images").show()
    print(COMPARABLE)
    if "pair" in result:
        pair = result["pair"]
        draws = f"{pair['n_noise']} draw{'s' * (pair['n_noise'] > 1)} of noise per image"
        print(f"The denoiser was trained as {pair['likelihood']}; {draws}.")
    if "pair_less" in result:
        less = result["pair_less"]["plain"]
        value = decimals(less["value"], error=less["standard_error"])
        print(f"pair less plain, paired over images: {value}")
    if options.per_class:
        result["classes"] = bits_of_classes(scores, dataset)
    return result


def bits_of_classes(scores: Mapping[str, Scores], dataset: ImageDataset) -> Json:
    """The rows of each class as JSON, which are printed too."""
    labels = dataset.known_labels()
    classes = {k: bits_by_class(v, labels[: v.n_images]) for k, v in scores.items()}
    rows = []
    for same in zip(*classes.values(), strict=True):
        values = (decimals(row["value"], error=row["standard_error"]) for row in same)
        rows.append([str(same[0]["label"]), f"{same[0]['n_images']:,}", *values])
    head = ["class", "images", *(f"{name}: bits/dim" for name in classes)]
    Table(head, rows, "bits/dim of each class").show()
    return classes


def evaluate_classify(options: ClassifyOptions) -> Json:
    """`dsmooth evaluate classify`."""
    device = choose_device(options.execution.device)
    models = load_models(options.models).to(device)
    if models.smoothed is not None and models.plain is not None:
        raise ValueError("name a pair or a plain model: one of them classifies at a time")
    dataset = choose_data(models, options.dataset).load(options.split)
    n = len(dataset) if options.limit is None else min(options.limit, len(dataset))
    with progress("classifying", n) as done, autocast(device, options.execution.precision):
        result = classify(
            models.model,
            dataset,
            limit=options.limit,
            n_noise=options.n_noise,
            batch_size=options.batch_size,
            seed=options.seed,
            progress=done,
        )
    draws, rule = None, "by exact likelihoods"
    if models.smoothed is not None:
        draws = options.n_noise
        rule = f"by importance-weighted bounds of {draws} draw{'s' * (draws > 1)}"
    error = "" if result.accuracy_error is None else f" ± {100 * result.accuracy_error:.2f}"
    k = result.log_likelihoods.shape[1]
    print(
        f"{100 * result.accuracy:.2f} %{error} of {n:,} images classified correctly, "
        f"{dataset.source}, {dataset.split}"
    )
    print(f"p(label | x) of the true label: {result.bits:.4f} bits ({math.log2(k):.2f} by chance)")
    print(f"Bayes' rule over {k} classes of equal prior probability, {rule}")
    return {
        "accuracy": result.accuracy,
        "accuracy_error": result.accuracy_error,
        "bits": result.bits,
        "confusion": result.confusion().tolist(),
        "exact": draws is None,
        "n_noise": draws,
        "n_images": n,
        "data": describe_data(dataset),
        "seed": options.seed,
        "weights_sha256": list(models.digests().values()),
    }


def evaluate_frechet(options: FrechetOptions) -> Json:
    """`dsmooth evaluate fid`."""
    if options.save_reference:
        check_output(options.save_reference, ".npz", "--save-reference")
    if options.per_class and (options.label != "each" or options.reference is not None):
        raise ValueError("--per-class needs --label each and a data set, not --reference")
    extractor = make_extractor(options.extractor, device=choose_device(options.execution.device))
    drawn = len(options.samples) != 1 or is_model(options.samples[0])
    models = load_models(options.samples) if drawn else None
    if options.per_class and (models is None or models.n_classes == 0):
        raise ValueError("--per-class needs samples of models with classes")
    real, source, floor = load_real(options, choose_data(models, options.dataset), models)
    reference = real.images if isinstance(real, ImageDataset) else real
    if options.save_reference and isinstance(reference, FeatureStatistics):
        raise ValueError("--save-reference needs real images, not the statistics of --reference")
    if models is not None and floor is not None:  # a misfit is refused before anything is drawn
        check_comparable(models.image_shape, reference, extractor, floor.images)
    samples, drawing, labels = collect_samples(options, models)
    shape = image_shape(reference if floor is None else floor.images)
    images = as_grey(samples.images) if shape is not None and shape[0] == 1 else samples.images
    unnamed = models is None and options.dataset.data is None and options.reference is None
    if unnamed and shape != tuple(images.shape[1:]):
        raise ValueError(
            f"`data` was not named, so mnist was taken, of images {shape} (C, H, W): the samples "
            f"are {tuple(images.shape[1:])}"
        )
    result = compare_images(
        images,
        reference,
        extractor,
        floor=None if floor is None else choose_images(floor, len(images)),
        seed=options.seed,
        progress=progress,
    )
    warnings = list(result.warnings)
    if samples.diverged:
        warnings.append(f"{samples.diverged:,} samples with infinite values were left out")
    numbers = {
        **{name: value for name, value in vars(result).items() if name != "reference"},
        "warnings": warnings,
        "samples": {"source": samples.source, "left_out": samples.diverged, **drawing},
        "reference": source,
        "floor_images": floor and {**describe_data(floor), "n_images": result.n_floor},
        "bytes": BYTES,
        "seed": options.seed,
    }
    print_comparison(numbers, result)
    if options.per_class and isinstance(real, ImageDataset) and floor and labels is not None:
        labelled = replace(real, images=images, labels=labels[samples.kept])
        classes = frechet_by_class(labelled, real, floor, extractor, progress=progress)
        numbers["classes"] = distances_of_classes(classes)
    if options.save_reference and rank_and_size()[0] == 0:
        result.reference.description.update(source)
        result.reference.save(options.save_reference)
        print(f"wrote {printable(options.save_reference)}")
    return numbers


def distances_of_classes(classes: Mapping[int, Comparison]) -> list[Json]:
    """The rows of each class as JSON, which are printed too."""
    names = ("value", "error", "floor", "n_samples", "n_reference")
    head, rows = ["class", "samples", "real images", "distance", "of other real images"], []
    for label, one in classes.items():
        distances = decimals(one.value, error=one.error), decimals(one.floor)
        rows.append([str(label), f"{one.n_samples:,}", f"{one.n_reference:,}", *distances])
    Table(head, rows, "distances of classes").show()
    return [
        {"label": label, **{name: getattr(one, name) for name in names}}
        for label, one in classes.items()
    ]


def load_real(
    options: FrechetOptions, choice: DataChoice, models: Loaded | None
) -> tuple[ImageDataset | Tensor | FeatureStatistics, Json, ImageDataset | None]:
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
        part = dataset.part(dataset.known_labels() == label)
        if len(part) < 2:
            raise ValueError(f"{dataset.source} has fewer than two images of class {options.label}")
        source = f"{len(part):,} images of class {options.label} of {dataset.source}"
        return replace(part, source=source)

    other_split = next(split for split in SPLITS if split != options.split)
    if options.reference is None:
        dataset = load(options.split)
        return dataset, describe_data(dataset) | {"label": options.label}, load(other_split)
    reference = read_reference(options.reference)
    saved = reference.description if isinstance(reference, FeatureStatistics) else {}
    asked = {"name": choice.name, "split": options.split, "label": options.label}
    for key, value in asked.items():
        if saved.get(key, value) != value:
            raise ValueError(
                f"`{'data' if key == 'name' else key}` must be {saved[key]}, as "
                f"{options.reference} was saved, got {value}"
            )
    described = {"source": str(options.reference)}
    described |= {key: saved[key] for key in (*asked, "source") if key in saved}
    known = options.dataset.data is not None or models is not None or "name" in saved
    return reference, described, load(other_split) if known else None


def collect_samples(
    options: FrechetOptions, models: Loaded | None
) -> tuple[ImageSet, Json, Tensor | None]:
    """The images to measure, drawn or read, how they were drawn, and their labels if they have."""
    if models is None:
        return read_images(options.samples[0], options.count), {}, None
    count = 1000 if options.count is None else options.count
    label = options.label if models.n_classes or options.label != "each" else None
    request = request_of(models, Drawing(seed=options.seed, label=label), count)
    weights, precision = list(models.digests().values()), options.execution.precision
    identity = {**request.identity(), "weights_sha256": weights, "precision": precision}
    # Other settings or weights go to another folder, so that nothing has to be deleted.
    digest = hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:8]
    folder = options.out.parent / f"samples-{count}-{digest}"
    check_writable(folder)
    prepare(options.execution, models)
    draw_into(folder, models, request, precision)
    barrier()
    return read_images(folder), identity, request.labels(models.n_classes)


def print_comparison(numbers: Json, result: Comparison) -> None:
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
    facts = (f"{count}images", reference["source"], reference.get("split"))
    print(
        f"Reference: {', '.join(filter(None, facts))}. Extractor: {extractor['name']}, sha256 "
        f"{extractor['sha256'][:16]}, {extractor['dimension']:,} features, resize: "
        f"{extractor['resize']}. Values become bytes: {BYTES}."
    )
    if not has_fidelity():
        print("Kernel distance, Inception score, precision, recall: pip install 'dsmooth[fid]'")
    for warning in numbers["warnings"]:
        print(f"warning: {warning}")


def spread(scores: Mapping[str, float], key: str) -> str:
    """A score, with its standard deviation if there is one; a dash where there is no score."""
    names = [name for name in (key, f"{key}_deviation") if name in scores]
    return " ± ".join(significant(scores[name], 4) for name in names) or decimals(None)
