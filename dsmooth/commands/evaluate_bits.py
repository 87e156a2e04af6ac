"""`dsmooth evaluate bpd`."""

from __future__ import annotations

from collections.abc import Mapping

from ..evaluate.likelihood import measure_bits
from ..machine import choose_device
from ..pretrained import load
from ..progress import progress
from ..results import BitsResult
from ..tables import COMPARABLE, bits_table
from ..text import decimals, escape_control
from .options import BitsOptions
from .shared import choose_data, request_of_measure


def evaluate_bits(options: BitsOptions) -> tuple[Mapping[str, object], BitsResult]:
    """Measure and print bits/dim; what decides the numbers, and the numbers."""
    folders = [*options.models, *filter(None, [options.plain])]
    models = load(*folders, device=choose_device(options.execution.device))
    dataset = choose_data(models, options.dataset).load(options.split, options.limit)
    with progress("bits/dim", len(dataset)):
        result = measure_bits(
            models,
            dataset,
            n_noise=options.n_noise,
            batch_size=options.batch_size,
            seed=options.seed,
            precision=options.execution.precision,
            mixture=True,
        )
    names = models.classes.names if models.classes else ()
    print_bits(result, dataset.source, names)
    return request_of_measure(options, dataset, models), result


def print_bits(result: BitsResult, source: str, class_names: tuple[str, ...]) -> None:
    """Print the tables and what they are of."""
    data = result.data
    if class_names and any(bits.classes == "hidden" for bits in result.models.values()):
        names = escape_control(f"{class_names[0]} to {class_names[-1]}")
        print(
            f"{data.name} has no labels of the model's classes {names}: their label is -1, no class"
        )
    bits_table(result, f"bits/dim · {source}, {data.split}: {data.n_images:,} images").show()
    print(COMPARABLE)
    if (pair := result.pair) is not None:
        draws = f"{pair.n_noise} draw{'s' * (pair.n_noise > 1)} of noise per image"
        print(f"The denoiser was trained as {pair.likelihood}; {draws}.")
    if (difference := result.difference) is not None:
        value = decimals(difference.value, error=difference.error)
        print(f"pair minus plain, paired over images: {value}")
