"""Measure packaged models and write their README.md, card.json and samples.png.

    python tools/card.py MNIST mnist [RUNS]

MNIST is the folder of the full data. With RUNS, the models are first packed from that folder
(`pack`). Samples and results are kept in build/card, so a repeated call continues. Prints the table
of the package's README.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Literal, TypeVar

import torch
from torch import Tensor

import dsmooth
from dsmooth.config import ProbeSettings
from dsmooth.data import SPLITS, ImageDataset, load_dataset
from dsmooth.data.order import choose_images
from dsmooth.data.pictures import BORDER, save_grid
from dsmooth.evaluate.classes import classify
from dsmooth.evaluate.comparison import Reference, black_share, compare_images
from dsmooth.evaluate.features import CLASSIFIER, extract_features, make_extractor
from dsmooth.evaluate.likelihood import score_pair
from dsmooth.evaluate.probe import (
    PIXELS,
    TOGETHER,
    ProbeInputs,
    best_probe,
    probe_network,
    untrained,
)
from dsmooth.experiments import Description, ReproduceSettings, Stages, bytes_to_compare, describe
from dsmooth.files import structured, write_atomically, write_json
from dsmooth.nn.weights import weights_digest
from dsmooth.pretrained import find
from dsmooth.pretrained.log import Step, entry_line
from dsmooth.pretrained.runs import RunFolder, WeightsSettings
from dsmooth.report.sections import TITLES, grid, settings_table
from dsmooth.results import (
    COMPARABLE,
    FLOOR,
    BitsResult,
    BlockScores,
    ProbeResult,
    bits_table,
)
from dsmooth.text import Table, render
from dsmooth.work import read_record, record_of

T = TypeVar("T")
GUIDANCE = 0.1  # of guided samples of a pair with classes
FEW = 1000  # images for classification and the classifier's confidence
STEPS = 300  # log entries of training steps that are packed, evenly spread


@dataclass(frozen=True)
class SampleQuality:
    """Samples of a card: Fréchet distances of the first N samples with their errors, by N; the
    share of black pixels; and the share of images that a classifier assigns at least a
    probability, by that probability."""

    distance: dict[str, float]
    error: dict[str, float]
    black: float
    confident: dict[str, float]


@dataclass(frozen=True)
class ClassNumbers:
    """Test images classified by Bayes' rule, and bits/dim given their class and without it."""

    n_images: int
    accuracy: float
    error: float | None
    bits_given_class: float
    bits_without: float


@dataclass(frozen=True)
class ClusterNumbers:
    """Bits/dim of test images by the sum over all clusters, and by a label of zeros."""

    n_images: int
    bits_summed: float
    bits_hidden: float


@dataclass(frozen=True)
class ModelCard(Description):
    """The numbers of packaged models (card.json). guidance: of the samples "guided".

    classes: of models of labelled classes; clusters: of models of their own clusters. judges: the
    tables of `python -m tools.judge`.
    """

    train_images: int
    test_images: int
    bits: BitsResult
    distance_name: str
    guidance: float
    samples: dict[str, SampleQuality]
    probes: dict[str, ProbeResult]
    classes: ClassNumbers | None = None
    clusters: ClusterNumbers | None = None
    judges: tuple[Table, ...] = ()


def packaged_card(name: str) -> ModelCard:
    """The card of packaged models."""
    path = find(name) / "card.json"
    return structured(read_record(path)["result"], ModelCard, path)


def pack(runs: Path, folder: Path) -> None:
    """Write float16 weights, settings without paths and thinned logs of runs that are finished."""
    for role in ("noisy", "denoiser", *["plain"] * (runs / "plain").exists()):
        source, target = RunFolder(runs / role), RunFolder(folder / role)
        if not source.is_finished():
            raise ValueError(f"{source.path} is not the folder of a finished run")
        config, size = source.read_config()
        entries = source.history()
        steps = [entry for entry in entries if isinstance(entry, Step)]
        kept = steps[:: max(1, len(steps) // STEPS)]
        entries = [entry for entry in entries if not isinstance(entry, Step) or entry in kept]
        target.path.mkdir(parents=True, exist_ok=True)
        # A run that began with others began, in the end, with earlier weights of the package.
        init = config.init and folder.name
        target.write_config(replace(config, data_dir=None, download=False, init=init), size)
        write_atomically(target.log, "".join(map(entry_line, entries)).encode())
        network = dsmooth.load(source.path).networks[config.role].half()
        assert network.record is not None  # a run that is finished has one
        record = asdict(replace(network.record, weights_sha256=weights_digest(network)))
        settings = WeightsSettings.of_run(config, size, **record)
        target.write_weights({config.role: network}, settings)


def write_card(
    folder: Path, work: Path, train_set: ImageDataset, test_set: ImageDataset, count: int = 10_000
) -> ModelCard:
    """Measure a pair on `count` samples and test images; write and return its card."""
    models = dsmooth.load(folder, *filter(Path.exists, [folder / "plain"]))
    choices = ReproduceSettings(count=count, scored_images=count, n_noise=2)
    stages = Stages(work, models, train_set, test_set, choices)
    pictures, _ = stages.pictures()
    if models.classes:
        guided = {"count": count, "label": "each", "guidance": GUIDANCE}
        pictures["guided"] = stages.draw("guided", models.pair, **guided)
    class_names = models.classes.names if models.classes else ()
    is_labelled = test_set.has_classes(models.classes)

    probed: tuple[Literal["noisy", "clean"], ...] = () if is_labelled else ("noisy", "clean")
    card = ModelCard(
        **vars(describe(models)),
        train_images=len(train_set),
        test_images=len(test_set),
        bits=stages.bits_per_dim(),
        distance_name=make_extractor(CLASSIFIER).facts.distance_name,
        guidance=GUIDANCE,
        samples=stages.obtain(
            "quality", dict[str, SampleQuality], lambda: measure_samples(stages, pictures)
        ),
        probes={
            kind: stages.obtain(
                f"probes-{kind}", ProbeResult, partial(measure_probes, stages, kind)
            )
            for kind in probed
        },
        classes=stages.obtain("classes", ClassNumbers, lambda: measure_classes(stages))
        if is_labelled
        else None,
        clusters=stages.obtain("clusters", ClusterNumbers, lambda: measure_clusters(stages))
        if models.classes and not is_labelled
        else None,
    )
    # The kinds of samples next to each other, with a column for each class if there are classes.
    shown = ("noisy", "two-step", "guided") if is_labelled else ("plain", "noisy", "two-step")
    kinds = [pictures[kind] for kind in shown if kind in pictures]
    n, gap = (
        len(class_names) if is_labelled else 8,
        torch.full_like(kinds[0][:1], BORDER / 127.5 - 1),
    )
    rows = [[part for x in kinds for part in (x[i * n :][:n], gap)] for i in range(min(n, 10))]
    write_atomically(folder / "samples.png", grid(*(torch.cat(row[:-1]) for row in rows)))
    if card.clusters is not None:  # a row of each cluster
        k = len(class_names)
        clusters = [pictures["two-step"][i::k][:16] for i in range(k)]
        save_grid(torch.cat(clusters), folder / "clusters.png", columns=16)
    save_card(folder, card)
    return card


def save_card(folder: Path, card: ModelCard, template: str = "card.md") -> None:
    """Write card.json and README.md."""
    write_json(folder / "card.json", record_of({"weights_sha256": card.weights_sha256}, card))
    write_atomically(folder / "README.md", text(template, card=card).encode())


def measure_probes(stages: Stages, kind: Literal["noisy", "clean"]) -> ProbeResult:
    """Probes of the noisy model and of the pixels; on clean images with baselines."""
    models, count = stages.models, stages.choices.count
    settings = ProbeSettings(input=kind, train_images=6 * count, test_images=count)
    sets = stages.train_set.first(6 * count), stages.test_set.first(count)
    inputs, noisy = ProbeInputs(*sets, models.pair.smoothing, settings), models.pair.noisy
    networks = {"noisy": noisy, PIXELS: None}
    if kind == "clean":
        networks |= {"plain": models.plain, "untrained-noisy": untrained(noisy, inputs)}
    scores = {name: probe_network(network, inputs) for name, network in networks.items()}
    return ProbeResult(scores, settings)


def measure_samples(stages: Stages, pictures: Mapping[str, Tensor]) -> dict[str, SampleQuality]:
    """Fréchet distances of the first samples, and the classifier's confidence in them."""
    network, count = make_extractor(CLASSIFIER), stages.choices.count
    others = choose_images(stages.test_set, count)
    real = Reference.of(stages.train_set.images, network)
    real = replace(real, features=None)
    results = {}
    for name, x in {**bytes_to_compare(pictures), FLOOR: others}.items():
        counts = sorted({min(count * tenths // 10, len(x)) for tenths in (1, 2, 4, 7, 10)})
        sets = {str(n): x[:n] for n in counts}
        found = compare_images(sets, real).distances
        logits = extract_features(x[:FEW], network).logits
        assert logits is not None
        confidence = logits.softmax(1).amax(1)
        results[name] = SampleQuality(
            distance={n: distance.value for n, distance in found.items()},
            error={n: distance.error for n, distance in found.items()},
            black=black_share(x[:FEW]),
            confident={str(p): float((confidence >= p).double().mean()) for p in (0.9, 0.99)},
        )
    return results


def measure_classes(stages: Stages) -> ClassNumbers:
    """Accuracy of classification by Bayes' rule, and bits/dim with and without the class."""
    data = stages.test_set.part(slice(FEW))
    found = classify(stages.models.pair, data)
    return ClassNumbers(
        n_images=len(data),
        accuracy=found.accuracy,
        error=found.error,
        bits_given_class=found.bits_given_class,
        bits_without=found.bits_of_mixture,
    )


def measure_clusters(stages: Stages) -> ClusterNumbers:
    """Bits/dim of test images: the sum over the clusters, and with a label of zeros."""
    data = stages.test_set.part(slice(FEW))
    scores = score_pair(stages.models.pair, data, n_noise=2, mixture=True)
    assert scores.mixture is not None
    return ClusterNumbers(
        n_images=scores.n_images,
        bits_summed=float(scores.bits(scores.mixture).mean()),
        bits_hidden=float(scores.bits(scores.log_weights("discretized")).mean()),
    )


def best_block(scores: BlockScores) -> str:
    """The best probe of a single block."""
    return best_probe({block: score for block, score in scores.items() if block != TOGETHER})


def text(name: str, **cards: ModelCard) -> str:
    """Fill a template with cards: README.md of a folder, or the table of the package's README."""
    functions = math.log2, best_probe, best_block, bits_table, settings_table
    words = {f.__name__: f for f in functions}
    values = {"COMPARABLE": COMPARABLE, "FEW": FEW, "FLOOR": FLOOR, "TITLES": TITLES}
    return render(Path(__file__).with_name(name), **words, **values, **cards)


def main() -> None:
    data, name, *packed = sys.argv[1:]
    folder, (train_set, test_set) = find(name), (load_dataset("mnist", s, data) for s in SPLITS)
    if packed:
        pack(Path(*packed), folder)
    write_card(folder, Path("build", "card", name), train_set, test_set)
    print(text("summary.md", card=packaged_card("mnist"), told=packaged_card("mnist-classes")))


if __name__ == "__main__":
    main()
