"""`dsmooth evaluate ...`: models and images from folders, numbers onto the screen and into JSON."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping
from contextlib import nullcontext, redirect_stdout
from dataclasses import asdict
from pathlib import Path
from typing import Any

from .._version import __version__
from ..data import ImageDataset
from ..distributed import process_group, rank_and_size
from ..evaluate.classes import bits_by_class, classify
from ..evaluate.likelihood import Scores, measure_bits
from ..evaluate.sources import choose_data, describe_data
from ..fields import check_number
from ..files import json_text, printable, write_json
from ..machine import autocast, choose_device, use_threads
from ..models import Models, load_models
from ..progress import progress, silence
from ..tables import COMPARABLE, Table, bits_table, decimals
from .frechet import evaluate_frechet
from .options import BitsOptions, ClassifyOptions, FrechetOptions
from .sample import check_output

STDOUT = Path("-")


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


def evaluate_bits(options: BitsOptions) -> dict[str, Any]:
    """`dsmooth evaluate bpd`."""
    device = choose_device(options.execution.device)
    models = load_models([*options.models, *filter(None, [options.plain])])
    images = options.dataset
    choice = choose_data(models, images.data, images.data_dir, images.image_size)
    dataset = choice.load(options.split)
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
    say_hidden(models, dataset)
    print_bits(result, f"bits/dim · {dataset.source}, {dataset.split}: {n:,} images")
    if options.per_class:
        result["classes"] = bits_of_classes(scores, dataset)
    return result


def say_hidden(models: Models, dataset: ImageDataset) -> None:
    """Print that networks with classes saw a label of zeros, where they did."""
    if models.class_names and not dataset.has_classes(models.class_names):
        print(
            f"{dataset.name} has no labels of the model's classes {models.class_names[0]} to "
            f"{models.class_names[-1]}: a label of zeros stands for all of them"
        )


def print_bits(result: Mapping[str, Any], title: str) -> None:
    """Print the table of all conventions of a pair, a plain model or both."""
    bits_table(result, title).show()
    print(COMPARABLE)
    if "pair" in result:
        pair = result["pair"]
        draws = f"{pair['n_noise']} draw{'s' * (pair['n_noise'] > 1)} of noise per image"
        print(f"The denoiser was trained as {pair['likelihood']}; {draws}.")
    if "pair_less" in result:
        less = result["pair_less"]["plain"]
        value = decimals(less["value"], error=less["standard_error"])
        print(f"pair less plain, paired over images: {value}")


def bits_of_classes(scores: Mapping[str, Scores], dataset: ImageDataset) -> dict[str, Any]:
    """The rows of each class as JSON, which are printed too."""
    labels = dataset.known_labels()
    classes = {k: bits_by_class(v, labels[: v.n_images]) for k, v in scores.items()}
    rows = []
    for same in zip(*classes.values(), strict=True):
        values = (decimals(row.value, error=row.standard_error) for row in same)
        rows.append([str(same[0].label), f"{same[0].n_images:,}", *values])
    head = ["class", "images", *(f"{name}: bits/dim" for name in classes)]
    Table(head, rows, "bits/dim of each class").show()
    return {name: list(map(asdict, same)) for name, same in classes.items()}


def evaluate_classify(options: ClassifyOptions) -> dict[str, Any]:
    """`dsmooth evaluate classify`."""
    device = choose_device(options.execution.device)
    models = load_models(options.models).to(device)
    if models.smoothed is not None and models.plain is not None:
        raise ValueError("name a pair or a plain model: one of them classifies at a time")
    images = options.dataset
    choice = choose_data(models, images.data, images.data_dir, images.image_size)
    dataset = choice.load(options.split)
    n = len(dataset) if options.limit is None else min(options.limit, len(dataset))
    with progress("classifying", n) as done, autocast(device, options.execution.precision):
        result = classify(
            models.smoothed or next(iter(models.networks.values())),
            dataset,
            limit=options.limit,
            n_noise=options.n_noise,
            batch_size=options.batch_size,
            seed=options.seed,
            progress=done,
        )
    draws = options.n_noise if models.smoothed is not None else None  # None: exact likelihoods
    error = "" if result.accuracy_error is None else f" ± {100 * result.accuracy_error:.2f}"
    rule = "by exact likelihoods"
    if draws is not None:
        rule = f"by importance-weighted bounds of {draws} draw{'s' * (draws > 1)}"
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
