"""The paper's experiments in one folder: stages that keep their results, and all they found."""

from __future__ import annotations

import platform
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from ._extension import __version__
from .config import Method, Precision, ProbeSettings, TrainingRecord
from .data import ImageDataset, to_bytes
from .data.order import choose_images, epoch_order
from .data.pictures import is_diverged, save_grid
from .evaluate.comparison import Reference, compare_images
from .evaluate.features import CLASSIFIER, make_extractor
from .evaluate.likelihood import clean_noise_of, measure_bits
from .evaluate.probe import probe_pair
from .evaluate.receptive_field import receptive_fields
from .fields import Setting, flatten
from .files import read_npz
from .machine import cpu_name
from .nn import PixelCNNpp
from .nn.condition import NO_CLASS
from .nn.weights import weights_digest
from .pair import SmoothedPair
from .pretrained import Loaded
from .progress import progress
from .results import FLOOR, BitsResult, FrechetResult, ProbeResult, ReceptiveFields
from .sampling.output import draw_all, write_images
from .sampling.resolve import resolve, sampler_precision
from .smoothing import GaussianSmoothing
from .training.step import kernel_rate
from .work import Record, once

T = TypeVar("T")
GRID_IMAGES = 64  # samples in the picture of a grid
DENOISED_IMAGES = 10  # held-out images whose denoising the report shows
TEST_IMAGES = "test images"  # the name of their distance

PROBES = ProbeSettings(train_images=1000, test_images=250)


@dataclass(frozen=True)
class ReproduceSettings:
    """What is measured, in addition to the models and the images.

    count: samples of each kind. scored_images: held-out images whose bits/dim are measured, by
    n_noise draws of x~ each. extractor: as `make_extractor` takes it; auto: the package's
    classifier for MNIST, none for other data. precision: of networks; "auto" is float32 for bits
    and probes, and for samples as of `dsmooth sample`.
    """

    # The error of the Fréchet distance doubles from 1,000 to 500, and hardly grows to 700.
    count: int = 700
    scored_images: int = 500
    n_noise: int = 1
    probes: ProbeSettings = PROBES
    extractor: str = "auto"
    seed: int = 0
    precision: Precision = "auto"


@dataclass(frozen=True)
class Machine:
    """Where and with which versions numbers were measured. gpu: None for the CPU."""

    processor: str
    cpu_threads: int
    gpu: str | None
    system: str
    python: str
    torch: str
    dsmooth: str


@dataclass(frozen=True)
class ModelSummary:
    """A model: its settings by dotted names (model.n_filters), and its training if finished."""

    parameters: int
    settings: dict[str, Setting]
    training: TrainingRecord | None = None


@dataclass(frozen=True)
class Description:
    """Models, by role, with the digests of their weights, and the machine that measures them."""

    machine: Machine
    weights_sha256: dict[str, str]
    models: dict[str, ModelSummary]


@dataclass(frozen=True)
class Report:
    """All numbers of a reproduction.

    name: of the settings or models. embedded: whether the data are the MNIST subset inside the
    package. diverged: images with infinite values, by kind of picture. frechet: None without an
    extractor for these images. probes: None for images without labels.
    """

    name: str
    data: str
    embedded: bool
    train_images: int
    test_images: int
    image_size: tuple[int, int]
    machine: Machine
    models: dict[str, ModelSummary]
    seed: int
    diverged: dict[str, int]
    bits: BitsResult
    frechet: FrechetResult | None
    probes: ProbeResult | None
    receptive_fields: ReceptiveFields


def describe(models: Loaded) -> Description:
    """What a card or report states of models before any measurement."""
    device = models.device
    machine = Machine(
        processor=cpu_name(),
        cpu_threads=torch.get_num_threads(),
        gpu=torch.cuda.get_device_name(device) if device.type == "cuda" else None,
        system=f"{platform.system()} {platform.machine()}",
        python=platform.python_version(),
        torch=str(torch.__version__),
        dsmooth=__version__,
    )
    summaries: dict[str, ModelSummary] = {}
    for role, network in models.networks.items():
        run, training = models.runs.get(role), None
        if run is None:
            noise = models.pair.smoothing
            known: dict[str, Any] = {"model": asdict(network.config)}
            known |= {"smoothing": noise.kind, "scale": noise.scale}
        else:
            config = run.read_config()[0]
            known = {key: value for key, value in asdict(config).items() if key != "data_dir"}
            if run.is_finished():
                training, is_muon = network.record, config.optimizer == "muon"
                known["kernel_rate"] = kernel_rate(config) if is_muon else None
        parameters = sum(p.numel() for p in network.parameters())
        summaries[role] = ModelSummary(parameters, flatten(known), training)
    digests = {str(role): weights_digest(network) for role, network in models.networks.items()}
    return Description(machine, digests, summaries)


@dataclass(frozen=True)
class Stages:
    """The experiments with loaded models, each with its file in one folder.

    A stage whose file is there is not computed again; ValueError names what differs in a file of
    other models, images or choices.
    """

    folder: Path
    models: Loaded
    train_set: ImageDataset
    test_set: ImageDataset
    choices: ReproduceSettings = field(default_factory=ReproduceSettings)

    def report(
        self, name: str, samples: Mapping[str, Tensor], held_out: Mapping[str, Tensor]
    ) -> Report:
        """The results of all stages, without paths of this machine.

        name: of the models or of their settings. samples, held_out: as `pictures` returns them.
        """
        models, train_set, test_set = self.models, self.train_set, self.test_set
        pictures = sorted({**samples, **held_out}.items())
        described = describe(models)
        has_labels = train_set.labels is not None and test_set.labels is not None
        return Report(
            name=name,
            data=test_set.name,
            embedded=test_set.embedded,
            train_images=len(train_set),
            test_images=len(test_set),
            image_size=test_set.image_size,
            machine=described.machine,
            models=described.models,
            seed=self.choices.seed,
            diverged={kind: int(is_diverged(x).sum()) for kind, x in pictures},
            bits=self.bits_per_dim(),
            frechet=self.compare(samples),
            probes=self.probe() if has_labels else None,
            receptive_fields=self.obtain("receptive_field", ReceptiveFields, receptive_fields),
        )

    @cached_property
    def request(self) -> Mapping[str, object]:
        """All that decides the results."""
        return {
            "data_sha256": {"train": self.train_set.digest, "test": self.test_set.digest},
            "settings": self.models.identity(),
            "clean_noise": clean_noise_of(self.models.pair),
            "drawn_in": sampler_precision(self.models.device, self.choices.precision),
            **asdict(self.choices),
        }

    def obtain(self, name: str, kind: type[T], compute: Callable[[], T]) -> T:
        """The result in NAME.json, else what `compute` gives."""
        record = Record(self.folder / f"{name}.json", self.request, kind)
        with progress(name.replace("_", " "), 1, "stages"):
            return record.obtain(compute)

    def pictures(self) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Samples by method, those of the pair of the same x~; and test images x, x~, and what
        each method makes of this x~. Images (N, C, H, W), by the names of their files."""
        # A kill leaves images, of which the record says what they are of.
        record = self.folder / "samples.json"
        Record(record, self.request, type(None)).begin(self.folder / "samples")
        models, pair, seed = self.models, self.models.pair, self.choices.seed
        methods: tuple[Method, ...] = ("two-step", "single-step")
        if not isinstance(pair.smoothing, GaussianSmoothing):
            methods = ("two-step",)
        first = self.test_set.first(DENOISED_IMAGES)
        clean = first.batch(torch.arange(len(first)))
        noised = pair.smoothing.sample(clean, seed=seed, first_index=0, repeat=0)
        has_classes = self.test_set.has_classes(models.classes)
        label = first.labels_for(models.classes) if has_classes else NO_CLASS
        new = {"count": self.choices.count, "label": "each" if models.classes else None}

        samples = {"noisy": self.draw("noisy", pair, method="noisy", **new)}
        held_out = {"held-out": clean, "held-out-noisy": noised}
        for method in methods:
            name, x_tilde = f"held-out-{method}", samples["noisy"].to(models.device)
            samples[method] = self.draw(method, pair, method=method, x_tilde=x_tilde, **new)
            x_tilde = noised.to(models.device)
            held_out[name] = self.draw(name, pair, method=method, x_tilde=x_tilde, label=label)
        if models.plain is not None:
            samples["plain"] = self.draw("plain", models.plain, **new)
        return samples, held_out

    def draw(
        self, name: str, model: SmoothedPair | PixelCNNpp, *, label: Any, **choices: Any
    ) -> Tensor:
        """The images (N, C, H, W) of samples/NAME.npz, which a model draws unless the file is
        there; NAME.png shows the first ones. choices: of `resolve`; label: of models with classes.
        """
        path = self.folder / "samples" / f"{name}.npz"
        if once(path.exists):
            return torch.from_numpy(read_npz(path)["x"])
        choices |= {"precision": self.choices.precision, "seed": self.choices.seed}
        whole = resolve(model, label=label if model.classes else None, **choices)
        with progress(f"drawing {name}", len(whole.indices)):
            x = draw_all(whole)
        once(save_grid, x[:GRID_IMAGES], path.with_suffix(".png"))
        once(write_images, path, x, whole, model.classes)
        return x

    def bits_per_dim(self) -> BitsResult:
        """Bits/dim on the first held-out images."""
        n_noise, seed, precision = self.choices.n_noise, self.choices.seed, self.choices.precision
        measure = partial(measure_bits, n_noise=n_noise, seed=seed, precision=precision)
        data = self.test_set.part(slice(self.choices.scored_images))
        return self.obtain("bits_per_dim", BitsResult, partial(measure, self.models, data))

    def compare(self, samples: Mapping[str, Tensor]) -> FrechetResult | None:
        """Fréchet distances to the training images: of samples, of as many test images, and of
        held-out training images, the floor. None without an extractor for the images."""
        compared = {k: x for k, x in bytes_to_compare(samples).items() if len(x) > 1}
        name, train_set, classes = self.choices.extractor, self.train_set, self.models.classes
        is_mnist = train_set.name == "mnist" and train_set.images.shape[1:] == (1, 28, 28)
        if name == "auto" and is_mnist:
            name = CLASSIFIER
        if name == "auto" or not compared:
            return None

        def compute() -> FrechetResult:
            count = max(map(len, compared.values()))
            # As evenly as the samples, which have equally many of each class of the models: classes
            # of the images, or groups of about equal size.
            labels = train_set.labels if classes else None
            held_out = choose_evenly(
                torch.zeros(len(train_set)) if labels is None else labels,
                min(count, len(train_set) // 2),
                equal=train_set.has_classes(classes),
            )
            others = torch.ones(len(train_set), dtype=torch.bool).index_fill(0, held_out, False)
            test_images = choose_images(self.test_set, count)
            sets = {**compared, TEST_IMAGES: test_images, FLOOR: train_set.images[held_out]}
            network = make_extractor(name, device=self.models.device)
            real = Reference.of(train_set.images[others], network)
            # Scores by features of the real images would take longer than the rest.
            return compare_images(sets, replace(real, features=None))

        return self.obtain("frechet", FrechetResult, compute)

    def probe(self) -> ProbeResult:
        """Accuracies of linear probes."""
        path, choices = self.folder / "probes.json", self.choices
        probe = partial(probe_pair, self.models.pair, self.train_set, self.test_set)
        with progress("probes", 4, "networks"):
            return probe(choices.probes, path, precision=choices.precision)


def bytes_to_compare(samples: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Samples without noise, of which a distance to real images is measured, as bytes, without
    diverged ones."""
    return {k: to_bytes(x[~is_diverged(x)]) for k, x in samples.items() if k != "noisy"}


def choose_evenly(labels: Tensor, count: int, *, equal: bool) -> Tensor:
    """The numbers of `count` images in a fixed random order, with a fixed share of each class.

    labels: (N,), of all images. equal: whether the shares are equal, else those of the labels.
    """
    order = epoch_order(len(labels), 0, 0)
    _, classes, sizes = labels[order].unique(return_inverse=True, return_counts=True)
    shares = torch.ones(len(sizes)) if equal else sizes
    ends = (count * shares.cumsum(0) / shares.sum()).round().int().tolist()
    parts = zip([0, *ends], ends, strict=False)
    chosen = [order[classes == k][: last - first] for k, (first, last) in enumerate(parts)]
    return torch.cat(chosen)
