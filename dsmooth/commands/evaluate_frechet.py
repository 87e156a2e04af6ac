"""`dsmooth evaluate fid`."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from ..data.order import choose_images
from ..evaluate.comparison import Reference, compare_images, has_fidelity
from ..evaluate.features import make_extractor
from ..evaluate.frechet import FeatureStatistics
from ..evaluate.sources import read_images, read_reference
from ..fields import check_number
from ..machine import choose_device
from ..progress import progress
from ..results import FLOOR, FrechetResult
from ..tables import frechet_table
from .options import FrechetOptions
from .shared import choose_data, describe_data

BYTES = "x in [-1, 1] to round((x + 1) * 127.5), clamped to 0 .. 255"


def evaluate_frechet(options: FrechetOptions) -> tuple[Mapping[str, object], FrechetResult]:
    """Read samples, compare and print; what decides the numbers, and the numbers."""
    check_number("seed", options.seed, 0, 2**64 - 1)
    if options.count is not None:
        check_number("count", options.count, 2)
    extractor = make_extractor(options.extractor, device=choose_device(options.execution.device))
    samples = read_images(options.samples, options.count, at_random=True)
    choice, floor = choose_data(None, options.dataset), None
    real: Tensor | FeatureStatistics
    if options.reference is None:
        data = choice.load(options.split)
        real, source = data.images, describe_data(data)
    else:
        real, source = read_reference(options.reference), {"source": str(options.reference)}
    if options.reference is None or options.dataset.data is not None:
        floor = choice.load("test" if options.split == "train" else "train")
    with progress("features of real images", len(real) if isinstance(real, Tensor) else 1):
        reference = Reference.of(real, extractor)
    sets = {"samples": samples.images}
    if floor is not None:
        sets[FLOOR] = choose_images(floor, len(samples.images))
    with progress("comparing images", sum(map(len, sets.values()))):
        result = compare_images(sets, reference, seed=options.seed)
    result = result.leave_out({"samples": samples.diverged})
    print_comparison(result, samples.source, source)
    request = {
        "samples": samples.source,
        "reference": source,
        "floor": floor and describe_data(floor),
        "extractor": options.extractor,
        "bytes": BYTES,
        "seed": options.seed,
    }
    return request, result


def print_comparison(result: FrechetResult, samples: str, source: Mapping[str, str]) -> None:
    """Print the table of distances and scores, their data and the extractor."""
    n = result.n_reference
    count = "" if n is None else f"{n:,} "
    frechet_table(result, f"{samples} against {count}real images").show()
    extractor = result.extractor
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
