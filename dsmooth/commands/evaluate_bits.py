"""`dsmooth evaluate bpd`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from ..evaluate.classes import bits_by_class
from ..evaluate.likelihood import measure_bits
from ..machine import choose_device
from ..pretrained import load
from ..results import BitsResult
from ..tables import COMPARABLE, bits_table, class_bits_table
from ..text import decimals, escape_control
from .options import BitsOptions
from .shared import choose_data, request_of_measure


def evaluate_bits(options: BitsOptions) -> tuple[Mapping[str, object], BitsResult]:
    """Measure and print bits/dim; what decides the numbers, and the numbers."""
    folders = [*options.models, *filter(None, [options.plain])]
    models = load(*folders, device=choose_device(options.execution.device)).checked()
    dataset = choose_data(models, options.dataset).load(options.split, options.limit)
    if options.per_class:
        dataset.known_labels("per_class")  # refused before any work
    result, scores = measure_bits(
        models,
        dataset,
        n_noise=options.n_noise,
        batch_size=options.batch_size,
        seed=options.seed,
        precision=options.execution.precision,
        mixture=True,
    )
    if options.per_class:
        labels, names = dataset.known_labels(), dataset.class_names
        classes = {name: bits_by_class(score, labels, names) for name, score in scores.items()}
        result = replace(result, classes=classes)
    print_bits(result, dataset.source, models.classes.names)
    return request_of_measure(options, dataset, models, options.n_noise), result


def print_bits(result: BitsResult, source: str, class_names: tuple[str, ...]) -> None:
    """Print the tables and what they are of."""
    data = result.data
    if class_names and any(bits.classes == "hidden" for bits in result.models.values()):
        names = escape_control(f"{class_names[0]} to {class_names[-1]}")
        print(
            f"{data.name} has no labels of the model's classes {names}: a label of zeros means "
            "all of them"
        )
    bits_table(result, f"bits/dim · {source}, {data.split}: {data.n_images:,} images").show()
    print(COMPARABLE)
    if (pair := result.pair) is not None:
        draws = f"{pair.n_noise} draw{'s' * (pair.n_noise > 1)} of noise per image"
        print(f"The denoiser was trained as {pair.likelihood}; {draws}.")
    if (difference := result.difference) is not None:
        value = decimals(difference.value, error=difference.error)
        print(f"pair minus plain, paired over images: {value}")
    if result.classes:
        class_bits_table(result).show()
