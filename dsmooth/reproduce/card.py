"""The model card of packaged models: every number is measured from the weights, then written.

    python -m dsmooth.reproduce.card --data-dir FOLDER [--folder mnist-classes]

FOLDER has the full MNIST. A stopped call can be repeated: it goes on where it was.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .._version import __version__
from ..config import ProbeInput, ProbeSettings
from ..data import ImageDataset, load_dataset
from ..data.order import choose_images
from ..evaluate.classes import classify
from ..evaluate.comparison import collect_statistics, measure_images
from ..evaluate.features import make_extractor
from ..evaluate.frechet import bootstrap_error
from ..evaluate.likelihood import conventions, score_pair, score_plain
from ..evaluate.probe import probe_pair
from ..fields import flatten
from ..files import write_atomically, write_json
from ..machine import use_threads
from ..models import Models, load_models
from ..pictures import BORDER, save_grid
from ..presets import as_flag
from ..pretrained import DEFAULT, find
from ..progress import progress
from ..report.page import render
from ..sampling.request import digest_of
from .results import describe_machine, describe_model
from .stages import Sizes, Stages, black_share, bytes_to_compare

# Images of the embedded test set whose bits/dim a test computes again.
SLICE_IMAGES = 40
CONFIDENT_IMAGES = 1000
CONFIDENCES = (0.9, 0.99)
GRIDS = ("plain", "noisy", "two-step", "guided")  # samples that the card shows
# Networks that are probed, by their input: the noisy model as in the paper; on clean images also
# the plain model and an untrained one, to compare it with.
PROBED: dict[ProbeInput, tuple[str, ...]] = {
    "noisy": ("noisy", "pixels"),
    "clean": ("noisy", "pixels", "plain", "untrained-noisy"),
}


@dataclass(frozen=True)
class CardOptions:
    """Measure packaged models and write README.md, card.json and samples.png beside them."""

    data_dir: str
    """Folder of the full MNIST."""
    folder: Path = Path(DEFAULT)
    """Folder, or name, of the runs noisy and denoiser, and plain if it is there."""
    work: Path = Path("card")
    """Folder for samples and for the numbers of each part, which a later call goes on from."""
    samples: int = 10_000
    """Samples of each method."""
    test_images: int = 10_000
    """Test images whose bits/dim are measured."""
    n_noise: int = 4
    """Draws of x~ per image."""
    frechet_counts: tuple[int, ...] = (1000, 2000, 4000, 7000, 10_000)
    """Numbers of samples whose distances are given, and extrapolated from."""
    probes: ProbeSettings = field(default_factory=ProbeSettings)
    """Linear probes; both inputs are measured."""
    longer: Path | None = None
    """Run folder of a plain model that was trained for as long as the pair."""
    seed: int = 0
    """Decides noise and samples."""
    threads: int | None = None
    """CPU threads; by default all cores."""
    classified: int = 1000
    """Test images that a pair with classes classifies."""
    guidance: float = 0.1
    """Guidance of further samples of a pair with classes; 0 for none."""


def write_card(
    options: CardOptions, train_set: ImageDataset, test_set: ImageDataset
) -> dict[str, Any]:
    """Measure the models and write their card; returns the content of card.json."""
    folder, work, seed = find(options.folder), options.work, options.seed
    plain = folder / "plain"
    models = load_models([folder, plain] if plain.exists() else [folder])
    for run in models.runs.values():
        if not run.is_finished():
            raise ValueError(f"{run.path} is not the folder of a finished run")
    work.mkdir(parents=True, exist_ok=True)
    sizes = Sizes(options.samples, options.test_images, extractor="mnist-classifier")
    guidance = options.guidance if models.n_classes else 0.0
    stages = Stages(work, models, train_set, test_set, sizes, seed, guidance=guidance)
    pictures = stages.draw()
    longer = None if options.longer is None else load_models([options.longer])
    if longer is not None and longer.plain is None:
        raise ValueError(f"{options.longer} must be the run of a plain model")
    bits = stages.bits_per_dim(longer.plain if longer else None, n_noise=options.n_noise)
    if longer is not None:
        bits["longer"]["run"] = describe_model("plain", longer, test_set, len(train_set))
    probes = {}
    for kind, only in PROBED.items() if models.n_classes == 0 else ():
        settings = replace(options.probes, input=kind, seed=seed)
        given = models.pair, train_set, test_set, settings, work / f"probes-{kind}.json"
        there = [name for name in only if name != "plain" or models.plain is not None]
        probes[kind] = probe_pair(*given, plain=models.plain, only=there)
    card = {
        "dsmooth": __version__,
        "seed": seed,
        "machine": describe_machine(models.device),
        "weights_sha256": models.digests(),
        "data": {"train_images": len(train_set), "test_images": len(test_set)},
        "runs": {
            role: describe_model(role, models, test_set, len(train_set)) for role in models.networks
        },
        "bits_per_dim": bits,
        "samples": measure_samples(options, stages, pictures),
        "probes": probes,
        "slice": measure_slice(models, seed),
    }
    if models.n_classes:
        card["classes"] = measure_classes(stages, options.classified)
    save_samples(pictures, models.n_classes or 8, folder / "samples.png")
    write_json(folder / "card.json", card)
    write_atomically(folder / "README.md", render_card(card).encode())
    return card


def save_samples(pictures: Mapping[str, Tensor], columns: int, path: Path) -> None:
    """The first samples of each kind as grids in a row, of so many columns and at most as rows.

    With as many columns as classes a column has the images of a class.
    """
    kinds = [pictures[name] for name in GRIDS if name in pictures]
    rows = min(columns, len(kinds[0]) // columns)
    grids = [x[: rows * columns].unflatten(0, (rows, columns)) for x in kinds]
    gap = torch.full_like(grids[0][:, :1], BORDER / 127.5 - 1)
    grid = torch.cat([part for x in grids for part in (gap, x)][1:], dim=1)
    save_grid(grid.flatten(0, 1), path, columns=grid.shape[1])


def measure_classes(stages: Stages, count: int) -> dict[str, Any]:
    """Test images classified by Bayes' rule, and their bits/dim given their class and without."""

    def compute() -> dict[str, Any]:
        pair, data = stages.models.pair, stages.test_set
        with progress("classes of test images", min(count, len(data))) as done:
            found = classify(pair, data, limit=count, seed=stages.seed, progress=done)
        nats, per_bit = found.log_likelihoods, math.log(2) * data.images[0].numel()
        given = nats.gather(1, found.labels[:, None])[:, 0]
        without = nats.logsumexp(1) - math.log(nats.shape[1])
        return {
            "n_images": len(nats),
            "accuracy": found.accuracy,
            "accuracy_error": found.accuracy_error,
            "bits_given_class": -float(given.mean()) / per_bit,
            "bits_without": -float(without.mean()) / per_bit,
        }

    key = {"n_images": count, "seed": stages.seed, "weights_sha256": stages.models.digests()}
    return stages.stored("classes", key, compute)


def measure_samples(
    options: CardOptions, stages: Stages, pictures: Mapping[str, Tensor]
) -> dict[str, Any]:
    """Fréchet distances at several numbers of samples, and how sure the classifier is of them."""
    extractor = make_extractor(stages.sizes.extractor)
    train_set, test_set = stages.train_set, stages.test_set
    samples = bytes_to_compare(pictures)

    def compute() -> dict[str, Any]:
        images = train_set.images
        _, reference = measure_images(extractor, "training images", images, progress=progress)
        kinds = {**samples, "test images": choose_images(test_set, options.samples)}
        results = {}
        for name, images in kinds.items():
            (found, logits), _ = measure_images(extractor, name, images, progress=progress)
            assert logits is not None  # of a classifier
            surest = logits[:CONFIDENT_IMAGES].softmax(1).amax(1)
            counts = sorted({min(n, len(images)) for n in options.frechet_counts})
            distance, error = {}, {}
            for n in counts:
                statistics = collect_statistics(found[:n], images, extractor)
                distance[str(n)] = statistics.distance(reference)
                error[str(n)] = bootstrap_error(found[:n], reference, seed=options.seed)
            results[name] = {
                "n_images": len(images),
                "distance": distance,
                "error": error,
                "black": black_share(images[:CONFIDENT_IMAGES]),
                "limit": limit_of_distances(counts, [*distance.values()]),
                "confident": {f"{p:g}": float((surest >= p).double().mean()) for p in CONFIDENCES},
            }
        return {"name": extractor.distance_name, "guidance": stages.guidance, "of": results}

    cache_key = {
        "counts": list(options.frechet_counts),
        "samples": options.samples,
        "guidance": stages.guidance,
        "seed": options.seed,
        "extractor": extractor.describe(),
        "samples_sha256": {name: digest_of(images) for name, images in samples.items()},
        "weights_sha256": stages.models.digests(),
    }
    return stages.stored("frechet", cache_key, compute)


def limit_of_distances(counts: Sequence[int], distances: Sequence[float]) -> float | None:
    """Distance at infinitely many samples, by a line in 1 / count; None for a single count.

    Source: Chong & Forsyth (CVPR 2020).
    """
    if len(counts) < 2:
        return None
    return float(np.polyfit(1 / np.array(counts), distances, 1)[1])


def measure_slice(models: Models, seed: int) -> dict[str, Any]:
    """Bits/dim of a few images in the package, which a test computes again."""
    data = load_dataset("mnist", "test")
    scores = {"pair": score_pair(models.pair, data, limit=SLICE_IMAGES, seed=seed)}
    if models.plain is not None:
        scores["plain"] = score_plain(models.plain, data, limit=SLICE_IMAGES)
    values = {name: conventions(score)[0].value for name, score in scores.items()}
    return {"n_images": SLICE_IMAGES, **values}


def render_card(card: Mapping[str, Any]) -> str:
    """README.md of the folder of packaged models, from the content of card.json."""
    command = measuring_command(card)
    return render("card.md", card=card, command=command, CONFIDENT_IMAGES=CONFIDENT_IMAGES)


def render_summary(card: Mapping[str, Any], told: Mapping[str, Any]) -> str:
    """The few numbers of the package's README, from the cards of `mnist` and `mnist-classes`.

    The second pair's bound is given the class, whose own bits are added to it: so it is comparable.
    """
    n_classes = told["runs"]["noisy"]["settings"]["model"]["n_classes"]
    label_bits = math.log2(n_classes) / told["bits_per_dim"]["pair"]["dimensions"]
    return render("summary.md", card=card, told=told, label_bits=label_bits)


def measuring_command(card: Mapping[str, Any]) -> str:
    """The command that measures the numbers of a card again."""
    bits, samples = card["bits_per_dim"], card["samples"]
    settings = {
        "samples": samples["asked"]["samples"],
        "test_images": bits["asked"]["n_images"],
        "n_noise": bits["asked"]["n_noise"],
        "frechet_counts": samples["asked"]["counts"],
        "seed": card["seed"],
    }
    if "classes" in card:
        settings |= {"folder": "mnist-classes", "classified": card["classes"]["n_images"]}
        settings["guidance"] = samples.get("guidance", 0.0)
    if "longer" in bits:
        settings["longer"] = "RUN"
    usual = flatten(asdict(CardOptions("MNIST")))
    changed = [as_flag(name, value) for name, value in settings.items() if value != usual[name]]
    return " ".join(["python -m dsmooth.reproduce.card --data-dir MNIST", *changed])


def main() -> None:
    """Carry out `python -m dsmooth.reproduce.card`."""
    import tyro

    options = tyro.cli(CardOptions, prog="python -m dsmooth.reproduce.card")
    use_threads(options.threads)
    write_card(options, *(load_dataset("mnist", s, options.data_dir) for s in ("train", "test")))
    print(f"wrote {find(options.folder) / 'README.md'}")


if __name__ == "__main__":
    main()
