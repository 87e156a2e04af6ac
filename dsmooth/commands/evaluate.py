"""`dsmooth evaluate ...`: a measure's numbers onto the screen and into a record."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

from torch import Tensor

from ..config import RESIZED
from ..data import load_splits
from ..data.dataset import as_grey
from ..data.order import choose_images
from ..data.sources import read_images
from ..evaluate.comparison import Reference, compare_images, has_fidelity
from ..evaluate.features import make_extractor
from ..evaluate.frechet import FeatureStatistics
from ..evaluate.likelihood import measure_bits
from ..fields import SettingError
from ..files import json_text, printable, read_npz, write_json
from ..machine import choose_device
from ..pretrained import images_for, load
from ..progress import progress, silence
from ..results import COMPARABLE, FLOOR, BitsResult, FrechetResult, bits_table
from ..text import Table, decimals, escape_control, significant
from ..work import once, record_of
from .options import BitsOptions, FrechetOptions

STDOUT = Path("-")
BYTES = "x in [-1, 1] to round((x + 1) * 127.5), clamped to 0 .. 255"


def evaluate(options: BitsOptions | FrechetOptions) -> None:
    """Run a command. Raises ValueError, OSError or ImportError for what does not fit."""
    screen, out = sys.stdout, options.out
    if out.suffix != ".json" and out != STDOUT:
        raise SettingError("out", f"must end in .json, got {out}")
    with silence() if out == STDOUT else nullcontext():
        if isinstance(options, BitsOptions):
            record = record_of(*evaluate_bits(options))
        else:
            record = record_of(*evaluate_frechet(options))
    if out == STDOUT:
        print(json_text(record), end="", file=screen)
    else:
        once(write_json, out, record)
        print(f"wrote {printable(out)}")


def evaluate_bits(options: BitsOptions) -> tuple[Mapping[str, object], BitsResult]:
    """Measure and print bits/dim; what decides the numbers, and the numbers."""
    folders = [*options.models, *filter(None, [options.plain])]
    models = load(*folders, device=choose_device(options.execution.device))
    splits = () if options.split is None else (options.split,)
    dataset = images_for(models, splits, **vars(options.dataset))[0].first(options.limit)
    choices = {"n_noise": options.n_noise, "seed": options.seed}
    precision = options.execution.precision
    with progress("bits/dim", len(dataset)):
        result = measure_bits(
            models,
            dataset,
            **choices,
            batch_size=options.batch_size,
            precision=precision,
            mixture=True,
        )
    print_bits(result, dataset.source, models.classes.names if models.classes else ())
    request = {"data": dataset.words, "n_images": len(dataset), **choices}
    return {**request, "precision": precision, "models": models.identity()}, result


def evaluate_frechet(options: FrechetOptions) -> tuple[Mapping[str, object], FrechetResult]:
    """Read samples, compare and print; what decides the numbers, and the numbers."""
    extractor = make_extractor(options.extractor, device=choose_device(options.execution.device))
    samples = read_images(options.samples, options.count, at_random=True)
    name, place = options.dataset.data or "mnist", options.dataset.data_dir
    path, floor, (height, width) = options.reference, None, samples.images.shape[2:]
    size = height if name in RESIZED and height == width else None
    real: Tensor | FeatureStatistics
    other = "test" if options.split == "train" else "train"
    if path is None:
        data, floor = load_splits(name, (options.split, other), place, False, size)
        real, source = data.images, data.words
    else:
        real, source = read_reference(path), {"source": printable(path)}
        if options.dataset.data is not None:
            (floor,) = load_splits(name, (other,), place, False, size)
    with progress("features of real images", len(real) if isinstance(real, Tensor) else 1):
        reference = Reference.of(real, extractor)
    sets = {"samples": samples.images}
    if floor is not None:
        sets[FLOOR] = choose_images(floor, len(samples.images))
    with progress("comparing images", sum(map(len, sets.values()))):
        result = compare_images(sets, reference, seed=options.seed)
    if samples.diverged:
        note = f"{samples.diverged:,} samples with infinite values were left out"
        result = replace(result, warnings=(*result.warnings, note))
    print_comparison(result, samples.source, source)
    request = {
        "samples": samples.source,
        "reference": source,
        "floor": floor and floor.words,
        "extractor": options.extractor,
        "bytes": BYTES,
        "seed": options.seed,
    }
    return request, result


def read_reference(path: Path) -> Tensor | FeatureStatistics:
    """Real images, bytes (N, C, H, W), of a file or folder; grey ones have one channel.

    Their statistics instead if a .npz has `mu` and `sigma`.
    """
    if path.suffix == ".npz" and {"mu", "sigma"} <= read_npz(path).keys():
        return FeatureStatistics.load(path)
    return as_grey(read_images(path).images)


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


def print_comparison(result: FrechetResult, samples: str, source: Mapping[str, str]) -> None:
    """Print the distances and scores of samples and of the floor, their data and the extractor."""
    extractor, n, sets = result.extractor, result.n_reference, [*result.distances.values()]
    count = "" if n is None else f"{n:,} "
    head = zip(sets, ("samples", "real images"), strict=False)
    values = (decimals(found.value, error=found.error) for found in sets)
    rows = [[f"{result.name}, ± standard error by the bootstrap", *values]]
    known, spread = extractor.is_inception, ", ± standard deviation"
    for name, field in (
        (f"{'KID' if known else 'Kernel distance'}{spread}", "kernel_distance"),
        (f"Inception{'' if known else '-style'} score{spread}", "inception_score"),
        ("Precision", "precision"),
        ("Recall", "recall"),
    ):
        fields = (field, f"{field}_deviation")
        numbers = [[getattr(found.scores, key, None) for key in fields] for found in sets]
        if numbers[0][0] is not None:
            cells = ([significant(x, 4) for x in row if x is not None] for row in numbers)
            rows.append([name, *(" ± ".join(cell) or "–" for cell in cells)])
    Table(
        ["", *(f"{found.n_images:,} {name}" for found, name in head)],
        rows,
        f"{samples} against {count}real images",
    ).show()
    facts = (f"{count}images", source["source"], source.get("split"))
    print(
        f"Reference: {', '.join(filter(None, facts))}. Extractor: {extractor.name}, sha256 "
        f"{extractor.sha256[:16]}, {result.dimension:,} features, resize: {extractor.resize}. "
        f"Values become bytes: {BYTES}."
    )
    if not has_fidelity():
        print("Kernel distance, Inception score, precision, recall: pip install 'dsmooth[fid]'")
    for warning in result.warnings:
        print(f"warning: {warning}")
