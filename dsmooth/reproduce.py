"""The paper's experiments in one folder: stages that keep their results, and their report."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor

from .config import Method, Precision
from .data import ImageDataset, to_bytes
from .data.order import choose_images, epoch_order
from .data.reading import read_npz
from .distributed import barrier, broadcast_int, rank_and_size
from .evaluate.batches import labels_for_model
from .evaluate.comparison import Reference, compare_images
from .evaluate.features import CLASSIFIER, make_extractor
from .evaluate.likelihood import measure_bits
from .evaluate.probe import probe_pair
from .evaluate.receptive_field import receptive_fields
from .machine import has_fast_bfloat16
from .pictures import is_diverged, save_grid
from .pretrained import Loaded
from .probe_settings import ProbeSettings
from .progress import progress
from .record import Record
from .report.contents import Report
from .report.describe import describe_images, describe_machine, describe_model
from .results import FLOOR, BitsResult, FrechetResult, ProbeResult, ReceptiveFields
from .sampling.output import draw_parts, on_cpu, write_images
from .sampling.request import Request, digest_of
from .sampling.two_step import draw
from .smoothing import GaussianSmoothing

T = TypeVar("T")
CHUNK = 64  # images drawn at a time
GRID_IMAGES = 64  # samples in the picture of a grid
DENOISED_IMAGES = 10  # held-out images whose denoising the report shows
# Pictures whose distance to real images is measured.
COMPARED = ("two-step", "single-step", "guided", "plain")
TEST_IMAGES = "test images"  # the name of their distance


@dataclass(frozen=True)
class Stages:
    """The experiments with loaded models, as the verbs do them, in one folder.

    count: samples of each kind; the first are shown, all are compared with real images.
    scored_images: held-out images whose bits/dim are measured. extractor: as `make_extractor`
    takes it; auto: the package's classifier for MNIST, none for other data. precision: of networks,
    as of `dsmooth sample`; "auto" also computes the features of probes in bfloat16 where the device
    is fast at it. A result that is stored with the same request is taken; delete its file to
    compute it again. Under torchrun all processes compute together, and rank 0 writes.
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
    precision: Precision = "auto"

    def report(self, name: str) -> tuple[Report, dict[str, Tensor]]:
        """The report of all stages, without paths of this machine; images (N, C, H, W) by name.

        name: of the models or of their settings.
        """
        models, train_set, test_set = self.models, self.train_set, self.test_set
        has_labels = train_set.labels is not None and test_set.labels is not None
        pictures = self.pictures()
        report = Report(
            name=name,
            data=describe_images(train_set, test_set),
            machine=describe_machine(models.device),
            models={role: describe_model(role, models, test_set) for role in models.networks},
            seed=self.seed,
            diverged={kind: int(is_diverged(x).sum()) for kind, x in sorted(pictures.items())},
            bits=self.bits_per_dim(),
            frechet=self.compare(pictures),
            probes=self.probe() if has_labels else None,
            receptive_fields=self.reach(),
        )
        return report, pictures

    def request(self, **choices: object) -> Mapping[str, object]:
        """All that decides the result of a stage."""
        return {
            "weights_sha256": self.models.digests(),
            "data_sha256": {"train": self.train_set.digest, "test": self.test_set.digest},
            "settings": self.models.identity(),
            "clean_noise": self.models.clean_noise,
            "seed": self.seed,
            **choices,
        }

    def obtain(self, name: str, kind: type[T], compute: Callable[[], T], **choices: object) -> T:
        """The stored result NAME.json of a stage with these choices, else what `compute` gives."""
        path = self.folder / f"{name}.json"
        return Record(path, self.request(**choices), kind, str, replace=True).obtain(compute)

    def load(self, name: str) -> Tensor:
        """The images in samples/NAME.npz: (N, C, H, W)."""
        return torch.from_numpy(read_npz(self.folder / "samples" / f"{name}.npz")["x"])

    def pictures(self) -> dict[str, Tensor]:
        """Samples, and held-out images denoised, in samples/.

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
        if broadcast_int(bool(record.missing([path.name, picture.name]))):
            rank, size = rank_and_size()
            if x is None:
                with progress(f"drawing {name}", request.count) as done:
                    draw_part = partial(draw, models.model, precision=self.precision)
                    images = [*draw_parts(draw_part, request.parts(CHUNK, size), on_cpu, done)]
                    x = torch.cat(images) if images else None
            if x is not None and rank == 0:
                save_grid(x[:GRID_IMAGES], picture)
                write_images(path, x, request, models.classes)
            record.keep_files(path.name, picture.name)
        barrier()
        return self.load(name)

    def bits_per_dim(self, n_noise: int = 1) -> BitsResult:
        """Bits/dim on held-out images, of the pair by `n_noise` draws of x~ per image."""
        data, precision = self.test_set.part(slice(self.scored_images)), self.precision
        measure = partial(measure_bits, self.models, data, seed=self.seed)
        choices = {"n_images": len(data), "n_noise": n_noise, "precision": precision}
        return self.obtain(
            "bits_per_dim",
            BitsResult,
            lambda: measure(n_noise=n_noise, precision=precision)[0],
            **choices,
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
        name, train_set, classes = self.extractor_name, self.train_set, self.models.classes
        if name is None or not samples:
            return None
        count = max(map(len, samples.values()))
        # As evenly as the samples: these have equally many of each class of the models, which may
        # be classes of the images, or groups of about equal size.
        labels = train_set.labels if classes.number else None
        held_out = choose_evenly(
            torch.zeros(len(train_set)) if labels is None else labels,
            min(count, len(train_set) // 2),
            equal=train_set.has_classes(classes.names),
        )
        network = make_extractor(name, device=self.models.device)

        def compute() -> FrechetResult:
            others = torch.ones(len(train_set), dtype=torch.bool).index_fill(0, held_out, False)
            # Only the statistics: scores by features of the real images take longer than the rest.
            real = Reference.of_images(train_set.images[others], network, progress=True)
            reference = replace(real, features=None)
            test_images = choose_images(self.test_set, count)
            sets = {**samples, TEST_IMAGES: test_images, FLOOR: train_set.images[held_out]}
            result = compare_images(sets, reference, progress=True)
            return result.leave_out({k: len(pictures[k]) - len(x) for k, x in samples.items()})

        return self.obtain(
            "frechet",
            FrechetResult,
            compute,
            extractor=asdict(network.describe()),
            held_out_sha256=digest_of(held_out),
            samples_sha256={kind: digest_of(images) for kind, images in samples.items()},
        )

    def reach(self) -> ReceptiveFields:
        """The receptive fields of small networks of both kinds."""
        return self.obtain("receptive_field", ReceptiveFields, receptive_fields)

    def probe(self) -> ProbeResult:
        """Accuracies of linear probes."""
        fast = self.precision == "auto" and has_fast_bfloat16(self.models.device)
        # With 500 + 500 images, five of the noisy model's seven probes were as accurate in
        # bfloat16. Two differed by one image.
        precision = "bfloat16" if fast else self.precision
        sets, path = (self.train_set, self.test_set), self.folder / "probes.json"
        with progress("probes", 4, "networks"):
            return probe_pair(self.models.pair, *sets, self.probes, path, precision=precision)


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
