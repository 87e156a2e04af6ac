"""`dsmooth evaluate fid`."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from ..data import SPLITS, ImageDataset
from ..data.order import choose_images
from ..errors import SettingError
from ..evaluate.comparison import Reference, compare_images, has_fidelity
from ..evaluate.features import make_extractor
from ..evaluate.frechet import FeatureStatistics
from ..evaluate.sources import as_grey, read_images, read_reference
from ..fields import check_number
from ..machine import choose_device
from ..results import FLOOR, FrechetResult
from ..tables import frechet_table
from .options import FrechetOptions
from .shared import choose_data, describe_data

BYTES = "x in [-1, 1] to round((x + 1) * 127.5), clamped to 0 .. 255"


def evaluate_frechet(options: FrechetOptions) -> tuple[Mapping[str, object], FrechetResult]:
    """Read samples, compare and print; what decides the numbers, and the numbers."""
    if options.count is not None:
        check_number("count", options.count)
    check_number("seed", options.seed, 0, 2**64 - 1)
    extractor = make_extractor(options.extractor, device=choose_device(options.execution.device))
    real, source, floor = load_real(options)
    samples = read_images(options.samples, options.count, at_random=True)
    images = samples.images
    if isinstance(real, FeatureStatistics):
        reference = Reference(extractor, real)
        images = as_grey(images)
    else:
        shape = tuple(real.shape[1:])
        if shape[0] == 1:  # grey images may be stored as RGB
            images = as_grey(images)
        if options.dataset.data is None and options.reference is None:
            check_default(shape, tuple(images.shape[1:]))
        reference = Reference.of_images(real, extractor, progress=True)
    sets = {"samples": images}
    if floor is not None:
        sets[FLOOR] = choose_images(floor, len(images))
    result = compare_images(sets, reference, seed=options.seed, progress=True)
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


def load_real(
    options: FrechetOptions,
) -> tuple[Tensor | FeatureStatistics, Mapping[str, str], ImageDataset | None]:
    """The reference and what it is; the images of the floor, None if no data set is known."""
    choice = choose_data(None, options.dataset)
    others = next(split for split in SPLITS if split != options.split)
    if options.reference is None:
        real = choice.load(options.split)
        return real.images, describe_data(real), choice.load(others)
    floor = None if options.dataset.data is None else choice.load(others)
    return read_reference(options.reference), {"source": str(options.reference)}, floor


def check_default(real: tuple[int, ...], samples: tuple[int, ...]) -> None:
    """Raise SettingError if samples (C, H, W) are not like the images of the default data set."""
    if samples != real:
        words = "was not given, so mnist was used, of images"
        raise SettingError("data", f"{words} {real} (C, H, W): the samples are {samples}")


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
