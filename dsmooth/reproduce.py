"""The paper's experiments in one folder: stages that keep their results, and their report."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor

from .config import Method, Precision, ProbeSettings, ReproductionStage, Split
from .data import ImageDataset, to_bytes
from .data.order import choose_images, epoch_order
from .data.reading import read_npz
from .distributed import barrier, broadcast_int, rank_and_size
from .evaluate.batches import labels_for_model
from .evaluate.comparison import Reference, compare_images
from .evaluate.features import CLASSIFIER, make_extractor
from .evaluate.likelihood import measure_bits
from .evaluate.probe import PIXELS, Probing, make_probing
from .evaluate.receptive_field import receptive_fields
from .machine import has_fast_bfloat16
from .pair import draw
from .pictures import is_diverged, save_grid
from .pretrained import DEFAULT, Loaded, packaged
from .progress import progress
from .record import Record, has_files, read_parts, read_result
from .report.contents import Report, ReportData, SampleCount
from .report.describe import describe_machine, describe_model, packaged_numbers
from .results import FLOOR, BitsResult, BlockScores, FrechetResult, ProbeResult, ReceptiveFields
from .sampling.output import gather, write_images
from .sampling.request import Request, digest_of
from .smoothing import GaussianSmoothing

T = TypeVar("T")
CHUNK = 64  # images drawn at a time
GRID_IMAGES = 64  # samples in the picture of a grid
DENOISED_IMAGES = 10  # held-out images whose denoising the report shows
# Networks that are probed. The plain model never saw noise, and one untrained network is control
# enough.
PROBED = ("noisy", "denoiser", PIXELS, "untrained-noisy")
# The probes of the controls for the packaged models and images, by `python tools/controls.py`.
CONTROLS = packaged()[DEFAULT] / "controls.json"
# Pictures whose distance to real images is measured.
COMPARED = ("two-step", "single-step", "guided", "plain")
TEST_IMAGES = "test images"  # the name of their distance


@dataclass(frozen=True)
class Measurements:
    """Results of the stages, None for one that was not run or had nothing to measure.

    pictures: (N, C, H, W) by name. skipped: why a stage had nothing to measure.
    """

    pictures: Mapping[str, Tensor]
    bits: BitsResult | None
    frechet: FrechetResult | None
    receptive_fields: ReceptiveFields | None
    probes: ProbeResult | None
    skipped: Mapping[str, str]


@dataclass(frozen=True)
class Stages:
    """The experiments with loaded models, as the verbs do them, in one folder.

    count: samples of each kind; the first are shown, all are compared with real images.
    scored_images: held-out images whose bits/dim are measured. extractor: as `make_extractor`
    takes it; auto: the package's classifier for MNIST, none for other data. only: run this stage
    again and no other. precision: of networks, as of `dsmooth sample`; "auto" also computes the
    features of probes in bfloat16 where the device is fast at it. Under torchrun all processes
    compute together, and rank 0 writes.
    """

    folder: Path
    models: Loaded
    train_set: ImageDataset
    test_set: ImageDataset
    count: int
    scored_images: int
    probes: ProbeSettings = field(default_factory=ProbeSettings)
    extractor: str = "auto"
    seed: int = 0
    only: ReproductionStage | None = None
    precision: Precision = "auto"

    def run(self) -> Measurements:
        """Results of the stages: stored ones of the same request, else computed.

        With `only` the other stages give what is stored of the same models and images.
        """
        skipped = {}
        if self.extractor_name is None:
            skipped["frechet"] = "the package's classifier is for MNIST; name another extractor"
        if self.train_set.labels is None or self.test_set.labels is None:
            skipped["probes"] = "the images have no labels"
        drawn = self.draw() if self.only in (None, "samples") else self.stored_pictures()
        return Measurements(
            drawn,
            self.bits_per_dim(),
            None if "frechet" in skipped else self.compare(drawn),
            self.stage("receptive-field", ReceptiveFields, {}, receptive_fields),
            None if "probes" in skipped else self.probe(),
            skipped,
        )

    @cached_property
    def identity(self) -> Mapping[str, object]:
        """The weights and images that every stage measures."""
        return {
            "weights_sha256": self.models.digests(),
            "data_sha256": {"train": self.train_set.digest, "test": self.test_set.digest},
        }

    def request(self, **settings: object) -> Mapping[str, object]:
        """All that decides the result of a stage."""
        return {
            **self.identity,
            "settings": self.models.identity(),
            "clean_noise": self.models.clean_noise,
            "seed": self.seed,
            **settings,
        }

    def stage(
        self,
        name: ReproductionStage,
        kind: type[T],
        settings: Mapping[str, object],
        compute: Callable[[], T],
    ) -> T | None:
        """The result of a stage with these settings, in the record of its name."""
        path = self.folder / f"{name.replace('-', '_')}.json"
        if self.only not in (None, name):
            return read_result(path, kind, self.identity) if path.exists() else None
        record = Record(path, self.request(**settings), kind, str, replace=True)
        return record.obtain(compute, again=self.only is not None)

    def stored_pictures(self) -> dict[str, Tensor]:
        """The images in samples/ of these weights and images."""
        paths = sorted(self.folder.glob("samples/*.json"))
        return {path.stem: self.read(path.stem) for path in paths if has_files(path, self.identity)}

    def read(self, name: str) -> Tensor:
        """The images in samples/NAME.npz: (N, C, H, W)."""
        return torch.from_numpy(read_npz(self.folder / "samples" / f"{name}.npz")["x"])

    def draw(self) -> dict[str, Tensor]:
        """Draw samples and denoise held-out images, into samples/.

        "noisy", "two-step", "single-step" and "plain" are samples; the same x~ underlies the first
        three. Names with "held-out" are of test images, with noise, and denoised.
        """
        models, pair, seed = self.models, self.models.pair, self.seed
        methods: tuple[Method, ...] = ("two-step",)
        if isinstance(pair.smoothing, GaussianSmoothing):
            methods = ("two-step", "single-step")
        clean = self.test_set.batch(torch.arange(min(DENOISED_IMAGES, len(self.test_set))))
        labels = labels_for_model(self.test_set, models.classes)
        held_out = Request(len(clean), seed, label=None if labels is None else labels[: len(clean)])
        noised = pair.smoothing.sample(clean, seed=seed, first_index=0, repeat=0)
        drawn = Request(self.count, seed, label="each" if models.classes.number else None)

        pictures = {
            "held-out": self.images("held-out", models, held_out, clean),
            "held-out-noisy": self.images("held-out-noisy", models, held_out, noised),
        }
        noisy = self.images("noisy", models.of("noisy"), replace(drawn, method="noisy"))
        pictures["noisy"] = noisy
        for prefix, request, x_tilde in (("", drawn, noisy), ("held-out-", held_out, noised)):
            for method in methods:
                name = f"{prefix}{method}"
                denoising = replace(request, method=method, x_tilde=x_tilde.to(models.device))
                pictures[name] = self.images(name, models.of("noisy", "denoiser"), denoising)
        if models.plain is not None:
            pictures["plain"] = self.images("plain", models.of("plain"), drawn)
        return pictures

    def images(
        self, name: str, models: Loaded, request: Request, x: Tensor | None = None
    ) -> Tensor:
        """The images of a request in samples/NAME.npz, and a picture of the first ones.

        They are x, or drawn from `models`.
        """
        if not models.classes.number:
            request = replace(request, label=None)
        path = self.folder / "samples" / f"{name}.npz"
        picture = path.with_suffix(".png")
        settings = {"count": request.count, "precision": self.precision, **request.identity()}
        record = Record(
            path.with_suffix(".json"), self.request(**settings), type(None), str, replace=True
        )
        if broadcast_int(self.only is not None or bool(record.missing([path.name, picture.name]))):
            images = x
            if images is None:
                with progress(f"drawing {name}", request.count) as done:
                    draw_part = partial(draw, models.model, precision=self.precision)
                    images = gather(draw_part, request, CHUNK, done)
            if images is not None and rank_and_size()[0] == 0:
                save_grid(images[:GRID_IMAGES], picture)
                write_images(path, images, request, models.classes)
            record.keep_files(path.name, picture.name)
        barrier()
        return self.read(name)

    def bits_per_dim(self, n_noise: int = 1) -> BitsResult | None:
        """Bits/dim on held-out images, of the pair by `n_noise` draws of x~ per image."""
        n, precision = min(self.scored_images, len(self.test_set)), self.precision
        measure = partial(measure_bits, self.models, self.test_set, limit=n, n_noise=n_noise)
        return self.stage(
            "bits-per-dim",
            BitsResult,
            {"n_images": n, "n_noise": n_noise, "precision": precision},
            lambda: measure(seed=self.seed, precision=precision)[0],
        )

    @property
    def extractor_name(self) -> str | None:
        """The extractor of Fréchet distances, None where "auto" has none for these images."""
        if self.extractor != "auto":
            return self.extractor
        is_mnist = self.train_set.name == "mnist" and self.train_set.images.shape[1:] == (1, 28, 28)
        return CLASSIFIER if is_mnist else None

    def compare(self, pictures: Mapping[str, Tensor]) -> FrechetResult | None:
        """Fréchet distances to the training images: of samples, of equally many test images, and of
        held-out training images, which are the floor."""
        samples = {k: x for k, x in bytes_to_compare(pictures).items() if len(x) > 1}
        name, train_set = self.extractor_name, self.train_set
        if name is None or not samples:
            return None
        count = max(map(len, samples.values()))
        # As evenly as the samples: these have equally many of each class of the models, which may
        # be classes of the images, or groups of about equal size.
        labels = train_set.labels if self.models.classes.number else None
        held_out = choose_evenly(
            torch.zeros(len(train_set)) if labels is None else labels,
            min(count, len(train_set) // 2),
            equal=train_set.has_classes(self.models.classes.names),
        )
        needed = self.only in (None, "frechet")
        network = make_extractor(name, device=self.models.device) if needed else None

        def compute() -> FrechetResult:
            assert network is not None
            others = torch.ones(len(train_set), dtype=torch.bool).index_fill(0, held_out, False)
            real = train_set.images[others]
            # Only the statistics: scores by features of the real images take longer than the rest.
            statistics = Reference.of_images(real, network, progress).statistics
            test_images = choose_images(self.test_set, count)
            sets = {**samples, TEST_IMAGES: test_images, FLOOR: train_set.images[held_out]}
            result = compare_images(sets, Reference(statistics), network, progress=progress)
            return result.leave_out({k: len(pictures[k]) - len(x) for k, x in samples.items()})

        settings = {
            "extractor": network and asdict(network.describe()),
            "held_out_sha256": digest_of(held_out),
            "samples_sha256": {kind: digest_of(images) for kind, images in samples.items()},
        }
        return self.stage("frechet", FrechetResult, settings, compute)

    def probe(self) -> ProbeResult | None:
        """Accuracies of linear probes."""
        path = self.folder / "probes.json"
        if self.only not in (None, "probes"):
            return read_result(path, ProbeResult, self.identity) if path.exists() else None
        probing, again = self.probing(), self.only is not None
        request, known = read_parts(CONTROLS, BlockScores)
        if again or request != probing.controls_request():
            known = {}
        return probing.run(path, known=known, replace=True, again=again)

    def probing(self) -> Probing:
        """The networks that are probed, and the images."""
        fast = self.precision == "auto" and has_fast_bfloat16(self.models.device)
        # With 500 + 500 images, five of the noisy model's seven probes were as accurate in
        # bfloat16. Two differed by one image.
        precision = "bfloat16" if fast else self.precision
        sets: dict[Split, ImageDataset] = {"train": self.train_set, "test": self.test_set}
        pair = self.models.pair
        return make_probing(pair, sets, self.probes, self.folder, None, PROBED, precision)


def bytes_to_compare(pictures: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Samples whose distance to real images is measured, as bytes, without diverged ones."""
    kept = {name: pictures[name] for name in COMPARED if name in pictures}
    return {name: to_bytes(x[~is_diverged(x)]) for name, x in kept.items()}


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


def make_report(
    stages: Stages,
    measured: Measurements,
    name: str,
    budget: float | None,
    *,
    is_packaged: bool = False,
    trained_here: bool = False,
) -> Report:
    """The report of `measured`; nothing in it is a path of this machine.

    name: of the models or of their settings. budget: minutes of their training in all.
    """
    models, train_set, test_set = stages.models, stages.train_set, stages.test_set
    card = packaged_numbers() if is_packaged else None
    training_images = len(train_set) if trained_here else None
    if card is not None:
        training_images = card.train_images
    hidden = models.classes.names and not test_set.has_classes(models.classes.names)
    return Report(
        name=name,
        packaged=card,
        budget_minutes=budget,
        trained_here=trained_here,
        data=ReportData(
            test_set.name,
            test_set.embedded,
            len(train_set),
            len(test_set),
            test_set.image_size,
            test_set.image_channels,
        ),
        machine=describe_machine(models.device),
        models={
            role: describe_model(role, models, test_set, training_images)
            for role in models.networks
        },
        hidden_classes=models.classes.number if hidden else 0,
        seed=stages.seed,
        samples={
            name: SampleCount(len(x), int(is_diverged(x).sum()))
            for name, x in sorted(measured.pictures.items())
        },
        bits=measured.bits,
        frechet=measured.frechet,
        probes=measured.probes,
        receptive_fields=measured.receptive_fields,
        skipped=dict(measured.skipped),
    )
