"""`dsmooth evaluate ...`: models and images from folders, numbers onto the screen and into JSON."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .._version import __version__
from ..data import SPLITS, ImageDataset, load_dataset
from ..distributed import barrier, process_group, rank_and_size
from ..evaluate.classifier import (
    EPOCHS,
    accuracy,
    load_classifier,
    save_classifier,
    train_classifier,
)
from ..evaluate.comparison import Comparison, compare_images
from ..evaluate.features import make_extractor
from ..evaluate.frechet import FeatureStatistics
from ..evaluate.likelihood import (
    EQUATION_4_SENTENCE,
    TERMS,
    Scores,
    conventions,
    score_pair,
    score_plain,
)
from ..evaluate.scores import KernelDistance
from ..evaluate.sources import BYTES, DataChoice, ImageSet, as_grey, choose_data, read_images
from ..files import write_json
from ..machine import choose_device, default_device, use_threads
from ..models import Models, load_models
from ..nn import PixelCNNpp
from ..nn.weights import weights_digest
from ..pretrained import is_model
from ..progress import progress, significant
from ..runs import RunFolder
from ..sampling.cached import Sampler
from ..sampling.request import How, Request
from ..tables import COMPARABLE, Table, bits_table, decimals
from .classes import (
    bits_of_classes,
    check_per_class,
    distances_of_classes,
    evaluate_classify,
    of_class,
)
from .options import BitsOptions, ClassifierOptions, ClassifyOptions, FrechetOptions
from .sample import check_models, check_outputs, sample_to_files

DEFAULT_COUNT = 1000


def evaluate(options: BitsOptions | FrechetOptions | ClassifyOptions | ClassifierOptions) -> None:
    """Carry out one command. Raises ValueError, OSError or ImportError for what does not fit."""
    use_threads(options.threads)
    check_output(options.out, (".safetensors",) if is_training(options) else (".json",))
    with process_group():
        if isinstance(options, BitsOptions):
            evaluate_bits(options)
        elif isinstance(options, FrechetOptions):
            evaluate_frechet(options)
        elif isinstance(options, ClassifyOptions):
            evaluate_classify(options)
        elif rank_and_size()[0] == 0:  # nothing to share
            make_classifier(options)


def is_training(options: object) -> bool:
    """Whether the command makes weights, not numbers."""
    return isinstance(options, ClassifierOptions)


def check_output(path: Path, suffixes: Sequence[str]) -> None:
    """Raise ValueError for a file that could not be written, before any work."""
    if path.suffix not in suffixes:
        raise ValueError(f"the output must end in {' or '.join(suffixes)}, got {path}")
    if not path.absolute().parent.is_dir():
        raise ValueError(f"there is no folder {path.absolute().parent} for {path.name}")


def evaluate_bits(options: BitsOptions) -> None:
    """`dsmooth evaluate bpd`."""
    models = load_models(options.models)
    plain = choose_plain(models, options.plain)
    choice = choose_data(models, options.data, options.data_dir, options.image_size)
    dataset = choice.load(options.split)
    check_per_class(options, dataset)
    n = len(dataset) if options.limit is None else min(options.limit, len(dataset))
    result: dict[str, Any] = {
        "dsmooth": __version__,
        "unit": "bits/dim",
        "data": {**describe_data(dataset), "n_images": n},
        "seed": options.seed,
    }
    settings: dict[str, Any] = {"limit": options.limit, "batch_size": options.batch_size}
    every: dict[str, Scores] = {}
    if models.smoothed is not None:
        clean_noise = options.clean_noise
        with progress("scoring the pair", n) as done:
            every["pair"] = score_pair(
                models.smoothed.to(default_device()),
                dataset,
                n_noise=options.n_noise,
                seed=options.seed,
                clean_noise=models.clean_noise if clean_noise is None else clean_noise,
                levels=options.levels,
                progress=done,
                **settings,
            )
        digests = [models.digests()[role] for role in models.networks if role != "plain"]
        levels = models.smoothed.ladder(options.levels)
        described = {"levels": list(levels), **describe_scores(every["pair"])}
        result["pair"] = {"weights_sha256": digests, **described}
        result["equation_4"] = EQUATION_4_SENTENCE if every["pair"].equation_4 else None
    if plain is not None:
        with progress("scoring the plain model", n) as done:
            every["plain"] = score_plain(
                plain.to(default_device()), dataset, progress=done, **settings
            )
        digests = [weights_digest(plain)]
        result["plain"] = {"weights_sha256": digests, **describe_scores(every["plain"])}
    if rank_and_size()[0] > 0:
        return
    print_bits(every, dataset)
    if options.per_class:
        result["classes"] = bits_of_classes(every, dataset)
    write_json(options.out, result)
    print(f"wrote {options.out}")


def choose_plain(models: Models, folder: Path | None) -> PixelCNNpp | None:
    """The plain model to score: that of `folder` or of `models`, None if there is neither.

    Raises ValueError for a folder of another model or another image size, for two plain models, and
    for a single model that is not plain.
    """
    if folder is None:
        if models.plain is None:
            models.pair  # noqa: B018 - says what is wrong with a single model
        return models.plain
    if models.plain is not None:
        raise ValueError(f"there are two plain models to score: leave out --plain {folder}")
    plain, config, size = RunFolder(folder).load_model()
    if config.role != "plain" or size != models.image_size:
        raise ValueError(
            f"--plain must be the run of a plain model of images {models.image_size}, got "
            f"{config.role} of {size}"
        )
    return plain


def describe_data(dataset: ImageDataset) -> dict[str, Any]:
    """The images that a number is of."""
    return {"name": dataset.name, "split": dataset.split, "source": dataset.source}


def describe_scores(scores: Scores) -> dict[str, Any]:
    """Scores of a pair or of a plain model, as the JSON file has them."""
    terms = {name: getattr(scores, name) for name in TERMS if getattr(scores, name) is not None}
    return {
        "trained_as": scores.trained_as,
        "n_noise": scores.n_noise,
        "dimensions": scores.dimensions,
        "clean_noise": scores.clean_noise,
        "terms": {name: float(scores.bits(nats).mean()) for name, nats in terms.items()},
        "conventions": [asdict(row) for row in conventions(scores)],
    }


def print_bits(every: Mapping[str, Scores], dataset: ImageDataset) -> None:
    """Print the table of all conventions of a pair, a plain model or both."""
    count = next(iter(every.values())).n_images
    title = f"bits/dim · {dataset.source}, {dataset.split}: {count:,} images"
    rows = {name: list(map(asdict, conventions(scores))) for name, scores in every.items()}
    bits_table(rows, title).show()
    print(COMPARABLE)
    scores = every.get("pair")
    if scores is not None:
        draws = f"{scores.n_noise} draw{'s' if scores.n_noise > 1 else ''} of noise per image"
        print(f"The denoiser was trained as {scores.trained_as}; {draws}.")
        if scores.equation_4:
            print(EQUATION_4_SENTENCE)


def evaluate_frechet(options: FrechetOptions) -> None:
    """`dsmooth evaluate fid`."""
    if options.save_reference:
        check_output(options.save_reference, (".npz",))
    extractor = make_extractor(options.extractor, weights=options.weights, device=default_device())
    models = models_to_draw(options.samples)
    choice = choose_data(models, options.data, options.data_dir, options.image_size)
    reference, description, real_set, other_set = load_real(options, choice)
    samples, how, labels = collect_samples(options, models)
    if other_set.image_channels == 1:
        samples = replace(samples, images=as_grey(samples.images))
    floor = other_set.images[: len(samples.images)]
    result = compare_images(
        samples.images,
        reference,
        extractor,
        floor=floor,
        batch_size=options.batch_size,
        subsets=options.subsets,
        subset_size=options.subset_size,
        seed=options.seed,
        progress=progress,
    )
    classes: dict[str, Any] = {}
    if options.per_class and real_set is not None:
        classes["classes"] = distances_of_classes(
            samples, labels, real_set, other_set, extractor, options.batch_size
        )
    if rank_and_size()[0] > 0:
        return
    warnings = list(result.warnings)
    if samples.diverged:
        warnings.append(f"{samples.diverged:,} samples with infinite values were left out")
    if options.save_reference and isinstance(reference, Tensor):
        result.reference.description |= description
        result.reference.save(options.save_reference)
    write_json(
        options.out,
        {
            "dsmooth": __version__,
            **result.as_json(),
            **classes,
            "warnings": warnings,
            "samples": {"source": samples.source, "left_out": samples.diverged, **how},
            "reference": description,
            "floor_images": {**describe_data(other_set), "first": result.n_floor},
            "bytes": BYTES,
            "seed": options.seed,
        },
    )
    print_comparison(result, warnings, samples, description)
    if options.save_reference:
        print(f"wrote {options.save_reference}")
    print(f"wrote {options.out}")


def load_real(
    options: FrechetOptions, choice: DataChoice
) -> tuple[Tensor | FeatureStatistics, dict[str, Any], ImageDataset | None, ImageDataset]:
    """The reference and its description; its data, if it is not saved; the images of the floor."""
    other_split = next(split for split in SPLITS if split != options.split)
    other_set = choice.load(other_split)
    check_per_class(options, other_set)
    if options.label != "each":
        other_set = of_class(other_set, options.label)
    if options.reference:
        statistics = FeatureStatistics.load(options.reference)
        description = {key: statistics.description.get(key) for key in ("name", "split", "source")}
        if description["split"] == other_split:
            raise ValueError(
                f"{options.reference} is of the {other_split} images, which give the floor: "
                f"add --split {other_split}"
            )
        return statistics, description, None, other_set
    real_set = choice.load(options.split)
    check_per_class(options, real_set)
    if options.label != "each":
        real_set = of_class(real_set, options.label)
    return real_set.images, describe_data(real_set), real_set, other_set


def models_to_draw(samples: Sequence[Path]) -> Models | None:
    """The models that `samples` names; None for one file or folder of images."""
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
    """The images to score, drawn or read, how they were drawn, and their labels if they have."""
    if models is None:
        return read_images(options.samples[0], options.count), {}, None
    count = DEFAULT_COUNT if options.count is None else options.count
    label = options.label if models.n_classes or options.label != "each" else None
    check_models(models, label, options.method)
    request = Request(
        count,
        options.seed,
        method=options.method,
        temperature=options.temperature,
        label=label,
    )
    settings: dict[str, Any] = {
        "seed": request.seed,
        "method": request.method,
        "temperature": request.temperature,
    }
    if label is not None:
        settings["label"] = label
    how = {**settings, "weights_sha256": list(models.digests().values())}
    # Other settings or weights go to another folder, so that nothing has to be deleted.
    digest = hashlib.sha256(json.dumps(how).encode()).hexdigest()[:8]
    name = f"samples-{options.method}-{count}-{digest}"
    keep = options.keep or options.out.parent / name
    check_outputs([keep], count)
    models.to(choose_device("auto"))
    sample_to_files(models, request, Sampler(How(options.threads)), [keep])
    barrier()
    labels = request.labels(models.n_classes)
    return read_images(keep), how, labels


def print_comparison(
    result: Comparison,
    warnings: Sequence[str],
    samples: ImageSet,
    reference: Mapping[str, Any],
) -> None:
    """Print the table of distances and scores, their data and the extractor."""
    rows = [[result.name, decimals(result.value), decimals(result.floor)]]
    if result.kernel:
        rows.append([result.kernel_name, spread(result.kernel), spread(result.kernel_floor)])
    if result.score:
        real = None if result.real_score is None else result.real_score.value
        rows.append([result.score_name, decimals(result.score.value), decimals(real)])
    head = ["", f"{result.n_samples:,} samples", f"{result.n_floor:,} real images"]
    title = f"{samples.source} against {result.n_reference:,} real images"
    Table(head, rows, title).show()
    extractor = result.extractor
    print(
        f"Reference: {result.n_reference:,} images, {reference.get('source', 'saved statistics')}, "
        f"{reference.get('split', '')}. Extractor: {extractor['name']}, sha256 "
        f"{extractor['sha256'][:16]}, {extractor['dimension']:,} features, resize: "
        f"{extractor['resize']}. Values become bytes: {BYTES}."
    )
    for warning in warnings:
        print(f"warning: {warning}")


def spread(distance: KernelDistance | None) -> str:
    """Mean ± standard deviation over subsets, or a dash."""
    if distance is None:
        return decimals(None)
    return f"{significant(distance.value, 4)} ± {significant(distance.standard_deviation, 2)}"


def make_classifier(options: ClassifierOptions) -> None:
    """`dsmooth evaluate train-classifier`."""
    epochs = EPOCHS if options.epochs is None else options.epochs
    train_set, test_set = (load_dataset("mnist", split, options.data_dir) for split in SPLITS)
    with progress("training the classifier", epochs, "epochs") as done:
        model = train_classifier(
            train_set,
            epochs=epochs,
            seed=options.seed,
            progress=lambda visited: done(visited / len(train_set)),
        )
    metadata = {
        "what": "classifier of MNIST digits of dsmooth.evaluate.classifier",
        "dsmooth": __version__,
        "torch": torch.__version__,
        "threads": str(torch.get_num_threads()),
        "seed": str(options.seed),
        "epochs": str(epochs),
        "train_images": str(len(train_set)),
        "test_images": str(len(test_set)),
    }
    save_classifier(model, options.out, metadata)
    # Measured on the file, whose weights are float16.
    right = accuracy(load_classifier(options.out)[0], test_set)
    save_classifier(model, options.out, {**metadata, "test_accuracy": f"{right:.4f}"})
    print(f"{100 * right:.2f} % of {len(test_set):,} test images classified correctly")
    print(f"wrote {options.out} ({options.out.stat().st_size / 1000:.0f} kB)")
