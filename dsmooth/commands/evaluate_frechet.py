"""`dsmooth evaluate fid`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace

from torch import Tensor

from ..data import SPLITS, ImageDataset
from ..data.order import choose_images
from ..distributed import barrier, rank_and_size
from ..errors import SettingError
from ..evaluate.classes import frechet_by_class
from ..evaluate.comparison import (
    Reference,
    check_comparable,
    compare_images,
    has_fidelity,
    image_shape,
)
from ..evaluate.features import extract_features, make_extractor, probe_image
from ..evaluate.frechet import FeatureStatistics, StatisticsSource
from ..evaluate.sources import ImageSet, as_grey, read_images, read_reference
from ..fields import check_number
from ..files import check_writable, printable
from ..machine import choose_device
from ..nn.condition import class_number
from ..pretrained import Loaded, is_model, load
from ..record import request_digest
from ..results import FLOOR, FrechetResult
from ..tables import class_distances_table, frechet_table
from ..text import escape_control
from .options import Drawing, FrechetOptions
from .shared import (
    DataChoice,
    check_output,
    choose_data,
    describe_data,
    draw_into,
    drawing_device,
    request_of,
)

BYTES = "x in [-1, 1] to round((x + 1) * 127.5), clamped to 0 .. 255"


def evaluate_frechet(options: FrechetOptions) -> tuple[Mapping[str, object], FrechetResult]:
    """Draw or read samples, compare and print; what decides the numbers, and the numbers."""
    models = load_drawing_models(options)
    extractor = make_extractor(options.extractor, device=choose_device(options.execution.device))
    if models is not None:  # a misfit is refused before any image is read
        extract_features(probe_image(models.image_shape), extractor)
    real, source, floor = load_real(options, choose_data(models, options.dataset), models)
    real_images = real.images if isinstance(real, ImageDataset) else real
    if options.save_reference and isinstance(real_images, FeatureStatistics):
        raise ValueError("--save-reference needs real images, not the statistics of --reference")
    if models is not None and floor is not None:  # and before anything is drawn
        for images in (real_images, floor.images):
            check_comparable(models.image_shape, images, extractor)
    samples, drawing = collect_samples(options, models)
    dataset = next((x for x in (real, floor) if isinstance(x, ImageDataset)), None)
    names = () if dataset is None else dataset.class_names
    if dataset is not None and (options.per_class or options.label != "each"):
        check_classes(dataset, samples.class_names)
    is_labelled = samples.labels is not None or samples.drawn_with is not None
    label = class_number(options.label, names) if is_labelled else "each"
    samples = samples if label == "each" else samples.of_class(label)
    shape = image_shape(real_images if floor is None else floor.images)
    if shape is not None and shape[0] == 1:  # grey images may be stored as RGB
        samples = replace(samples, images=as_grey(samples.images))
    is_default = models is None and options.dataset.data is None and options.reference is None
    if is_default and shape != (found := tuple(samples.images.shape[1:])):
        words = "was not given, so mnist was used, of images"
        raise SettingError("data", f"{words} {shape} (C, H, W): the samples are {found}")
    if isinstance(real_images, FeatureStatistics):
        reference = Reference(real_images)
    else:
        reference = Reference.of_images(real_images, extractor, progress=True, source=source)
    sets = {"samples": samples.images}
    if floor is not None:
        sets[FLOOR] = choose_images(floor, len(samples.images))
    result = compare_images(sets, reference, extractor, seed=options.seed, progress=True)
    result = result.leave_out({"samples": samples.diverged})
    print_comparison(result, samples.source, source)
    if options.per_class and isinstance(real, ImageDataset) and floor:
        assert samples.labels is not None
        labelled = replace(real, images=samples.images, labels=samples.labels[samples.kept])
        classes = frechet_by_class(labelled, real, floor, extractor, progress=True)
        result = replace(result, classes=classes)
        class_distances_table(classes).show()
        for row in classes:
            for warning in row.warnings:
                print(f"warning: class {escape_control(row.title)}: {warning}")
    if options.save_reference and rank_and_size()[0] == 0:
        reference.statistics.save(options.save_reference)
        print(f"wrote {printable(options.save_reference)}")
    request = {
        "samples": {"source": samples.source, **drawing},
        "reference": {name: value for name, value in asdict(source).items() if value is not None},
        "floor": floor and describe_data(floor),
        "bytes": BYTES,
        "seed": options.seed,
    }
    return request, result


def check_classes(dataset: ImageDataset, names: Sequence[str]) -> None:
    """Raise ValueError for real images with labels of other classes than those of the samples."""
    if not dataset.has_classes(names):
        raise ValueError(f"{dataset.source} has labels of other classes than {', '.join(names)}")


def load_drawing_models(options: FrechetOptions) -> Loaded | None:
    """The models to draw from, None where the samples are images. Checks the options."""
    if options.count is not None:
        check_number("count", options.count)
    check_number("seed", options.seed, 0, 2**64 - 1)
    if options.save_reference:
        check_output(options.save_reference, ".npz", "--save-reference")
    if options.per_class and (options.label != "each" or options.reference is not None):
        raise ValueError("--per-class needs --label each and a data set, not --reference")
    is_drawn = len(options.samples) != 1 or is_model(options.samples[0])
    models = None
    if is_drawn:
        models = load(*options.samples, device=drawing_device(options.execution)).checked()
    if options.per_class and models is not None and models.classes.number == 0:
        raise ValueError("--per-class needs samples of models with classes")
    return models


def load_real(
    options: FrechetOptions, choice: DataChoice, models: Loaded | None
) -> tuple[ImageDataset | Tensor | FeatureStatistics, StatisticsSource, ImageDataset | None]:
    """The reference and its source; the images of the floor.

    There is no floor if nothing says which data set the reference is of. Statistics that were saved
    here are of the floor's data set, split and label.
    """

    def load(split: str) -> ImageDataset:
        dataset = choice.load(split)
        if options.per_class or options.label != "each":
            dataset.known_labels("per_class" if options.per_class else "label")
            if models is not None:
                check_classes(dataset, models.classes.names)
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
        dataset, floor = load(options.split), load(other_split)
        source = StatisticsSource(
            name=dataset.name,
            split=dataset.split,
            source=dataset.source,
            label=options.label,
            floor_sha256=floor.digest,
        )
        return dataset, source, floor
    reference = read_reference(options.reference)
    saved = reference.source if isinstance(reference, FeatureStatistics) else StatisticsSource()
    for argument, stored, given in (
        ("data", saved.name, choice.name),
        ("split", saved.split, options.split),
        ("label", saved.label, options.label),
    ):
        if stored not in (None, given):
            raise SettingError(
                argument, f"must be {stored}, as {options.reference} was saved, got {given}"
            )
    known = options.dataset.data is not None or models is not None or saved.name is not None
    source = replace(saved, source=saved.source or str(options.reference))
    if not known:
        return reference, source, None
    floor = load(other_split)
    if saved.floor_sha256 not in (None, floor.digest):
        raise SettingError(
            "data_dir",
            f"must name the data set that {options.reference} was saved with: the {other_split} "
            f"images of {floor.source} are others",
        )
    return reference, source, floor


def collect_samples(
    options: FrechetOptions, models: Loaded | None
) -> tuple[ImageSet, Mapping[str, object]]:
    """The images to measure, drawn or read, with their labels if any; and how they were drawn."""
    if models is None:
        samples = read_images(options.samples[0], options.count, at_random=True)
        if options.per_class and samples.labels is None:
            raise ValueError(
                f"--per-class needs labelled samples, but {samples.source} has none: a .npz holds "
                "them as integers `label` (N,)"
            )
        return samples, {}
    count = 1000 if options.count is None else options.count
    label = options.label if models.classes.number or options.label != "each" else None
    request = request_of(models, Drawing(seed=options.seed, label=label), count)
    precision = options.execution.precision
    drawing = {**request.identity(), "weights_sha256": models.digests(), "precision": precision}
    # Other settings or weights go to another folder, so that nothing has to be deleted.
    folder = options.out.parent / f"samples-{count}-{request_digest(drawing)}"
    check_writable(folder)
    draw_into(folder, models, request, precision)
    barrier()
    return replace(read_images(folder), labels=request.labels(models.classes)), drawing


def print_comparison(result: FrechetResult, samples: str, source: StatisticsSource) -> None:
    """Print the table of distances and scores, their data and the extractor."""
    n = result.n_reference
    count = "" if n is None else f"{n:,} "
    frechet_table(result, f"{samples} against {count}real images").show()
    extractor = result.extractor
    facts = (f"{count}images", source.source, source.split)
    print(
        f"Reference: {', '.join(filter(None, facts))}. Extractor: {extractor.name}, sha256 "
        f"{extractor.sha256[:16]}, {result.dimension:,} features, resize: {extractor.resize}. "
        f"Values become bytes: {BYTES}."
    )
    if not has_fidelity():
        print("Kernel distance, Inception score, precision, recall: pip install 'dsmooth[fid]'")
    for warning in result.warnings:
        print(f"warning: {warning}")
