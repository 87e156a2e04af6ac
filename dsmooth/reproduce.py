"""The paper's experiments in one folder: stages that remember their results, and their report."""

from __future__ import annotations

import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path

import torch
from jinja2 import UndefinedError
from torch import Tensor

from ._version import __version__
from .config import Method, Precision, ProbeSettings, ReproductionStage, Role
from .data import ImageDataset, to_bytes
from .data.order import choose_images
from .data.reading import read_npz
from .distributed import rank_and_size
from .evaluate.batches import labels_for_model
from .evaluate.comparison import compare_images, measure_images
from .evaluate.features import make_extractor
from .evaluate.likelihood import measure_bits
from .evaluate.probe import PIXELS, probe_pair
from .evaluate.receptive_field import receptive_fields
from .fields import Json
from .files import read_json, write_json
from .machine import cpu_name, has_fast_bfloat16
from .pair import draw
from .pictures import is_diverged, save_grid
from .pretrained import DEFAULT, TITLE, Loaded, packaged
from .progress import progress
from .remembered import remembered
from .report.page import write_report
from .sampling.output import gather, write_images
from .sampling.request import Request, digest_of
from .smoothing import GaussianSmoothing
from .training.step import kernel_rate

CHUNK = 64  # images drawn at a time
GRID_IMAGES = 64  # samples in the picture of a grid
DENOISED_IMAGES = 10  # held-out images whose denoising the report shows
# Networks that are probed. The plain model never saw noise, and one untrained network is control
# enough.
PROBED = ("noisy", "denoiser", PIXELS, "untrained-noisy")
# Pictures whose distance to real images is measured.
COMPARED = ("two-step", "single-step", "guided", "plain")


@dataclass(frozen=True)
class Stages:
    """The experiments with loaded models, as the verbs do them, in one folder.

    count: samples of each kind; the first are shown, all are compared with real images.
    scored_images: held-out images whose bits/dim are measured. extractor: as `make_extractor`
    names it; auto: the package's classifier for MNIST, none for other data. only: do this stage
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

    def run(self) -> None:
        """Do the stages that are not done, or the one that is asked for."""
        stages: dict[ReproductionStage, Callable[[], object]] = {
            "samples": self.draw,
            "bits-per-dim": self.bits_per_dim,
            "frechet": self.compare,
            "receptive-field": lambda: self.remember("receptive_field", {}, receptive_fields),
            "probes": self.probe,
        }
        for name, stage in stages.items():
            if self.only in (None, name):
                stage()

    @property
    def embedded(self) -> bool:
        """Whether the images are the package's subset of MNIST."""
        return self.test_set.source.startswith("embedded")

    @cached_property
    def subject(self) -> Json:
        """The models and images that every stage measures, as JSON."""
        return {
            "weights_sha256": self.models.digests(),
            "data_sha256": {"train": self.train_set.digest, "test": self.test_set.digest},
            "settings": self.models.identity(),
            "clean_noise": self.models.clean_noise,
            "seed": self.seed,
        }

    def remember(
        self, name: str, key: Json, compute: Callable[[], Json], *, again: bool = False
    ) -> Json:
        """The result in NAME.json, of this subject and key."""
        path, again = self.folder / f"{name}.json", again or self.only is not None
        return remembered(path, {**self.subject, **key}, compute, again=again)

    def results(self, *names: str) -> dict[str, Json]:
        """Content of the files NAME.json, without the results of other weights and images."""
        paths = {name: self.folder / f"{name}.json" for name in names}
        results = {name: read_json(path) for name, path in paths.items() if path.exists()}
        return {
            name: result
            for name, result in results.items()
            if "asked" in result
            and all(
                result["asked"][digests].items() <= self.subject[digests].items()
                for digests in ("weights_sha256", "data_sha256")
            )
        }

    def pictures(self) -> dict[str, Tensor]:
        """The images in samples/ of these weights: (N, C, H, W) by name."""
        names = [path.stem for path in sorted(self.folder.glob("samples/*.npz"))]
        return {name: self.read(name) for name in names if self.results(f"samples/{name}")}

    def read(self, name: str) -> Tensor:
        """The images in samples/NAME.npz: (N, C, H, W)."""
        return torch.from_numpy(read_npz(self.folder / "samples" / f"{name}.npz")["x"])

    def draw(self) -> None:
        """Draw samples and denoise held-out images, into samples/.

        "noisy", "two-step", "single-step" and "plain" are samples; the same x~ stands behind the
        first three. Names with "held-out" are of test images, with noise, and denoised.
        """
        models, pair, seed = self.models, self.models.pair, self.seed
        methods: tuple[Method, ...] = ("two-step",)
        if isinstance(pair.smoothing, GaussianSmoothing):
            methods = ("two-step", "single-step")
        clean = self.test_set.batch(torch.arange(min(DENOISED_IMAGES, len(self.test_set))))
        labels = labels_for_model(self.test_set, models.n_classes, models.class_names)
        held_out = Request(len(clean), seed, label=None if labels is None else labels[: len(clean)])
        noised = pair.smoothing.sample(clean, seed=seed, first_index=0, repeat=0)
        every = Request(self.count, seed, label="each" if models.n_classes else None)

        self.images("held-out", models, held_out, clean)
        self.images("held-out-noisy", models, held_out, noised)
        noisy = self.images("noisy", models.of("noisy"), replace(every, method="noisy"))
        for prefix, request, x_tilde in (("", every, noisy), ("held-out-", held_out, noised)):
            for method in methods:
                denoising = replace(request, method=method, x_tilde=x_tilde.to(models.device))
                self.images(f"{prefix}{method}", models.of("noisy", "denoiser"), denoising)
        if models.plain is not None:
            self.images("plain", models.of("plain"), every)

    def images(
        self, name: str, models: Loaded, request: Request, x: Tensor | None = None
    ) -> Tensor:
        """The images of a request in samples/NAME.npz, with a picture beside it.

        They are x, or drawn from `models`.
        """
        if not models.n_classes:
            request = replace(request, label=None)
        path = self.folder / "samples" / f"{name}.npz"

        def compute() -> Json:
            images = x
            if images is None:
                with progress(f"drawing {name}", request.count) as done:
                    draw_part = partial(draw, models.model, precision=self.precision)
                    images = gather(draw_part, request, CHUNK, done)
            if images is not None and rank_and_size()[0] == 0:
                save_grid(images[:GRID_IMAGES], path.with_suffix(".png"))
                write_images(path, images, request, n_classes=models.n_classes)
            return {}

        key = {"count": request.count, "precision": self.precision, **request.identity()}
        self.remember(f"samples/{name}", key, compute, again=not path.exists())
        return self.read(name)

    def bits_per_dim(self, n_noise: int = 1) -> Json:
        """Bits/dim on held-out images, of the pair by `n_noise` draws of x~ per image."""
        n, seed, precision = min(self.scored_images, len(self.test_set)), self.seed, self.precision
        measure = partial(measure_bits, self.models, self.test_set, limit=n, n_noise=n_noise)
        key = {"n_images": n, "n_noise": n_noise, "precision": precision}
        return self.remember(
            "bits_per_dim", key, lambda: measure(seed=seed, precision=precision)[0]
        )

    def compare(self) -> Json:
        """Fréchet distances of samples, and of equally many test images, to the training images."""
        real, name, pictures = self.train_set.images, self.extractor, self.pictures()
        samples = {k: x for k, x in bytes_to_compare(pictures).items() if len(x) > 1}
        if name == "auto" and self.train_set.name == "mnist" and real.shape[1:] == (1, 28, 28):
            name = "mnist-classifier"
        network = None if name == "auto" else make_extractor(name, device=self.models.device)

        def compute() -> Json:
            if network is None:
                return {"skipped": "the package's classifier is for MNIST; name another extractor"}
            if not samples:
                return {"skipped": "there are no samples to compare"}
            _, reference = measure_images(network, "real images", real, progress=progress)
            floor = choose_images(self.test_set, max(map(len, samples.values())))
            distances = {}
            for kind, images in {**samples, "real": floor}.items():
                comparison = compare_images(images, reference, network, progress=progress)
                distances[kind] = {
                    "value": comparison.value,
                    "error": comparison.error,
                    "black": black_share(images),
                    "n_images": len(images),
                    "left_out": len(pictures.get(kind, images)) - len(images),
                    "warnings": list(comparison.warnings),
                }
            return {
                "unit": "squared distance in feature space",
                "name": network.distance_name,
                "extractor": network.describe(),
                "reference": {"split": "train", "n_images": len(real)},
                "distances": distances,
            }

        key = {
            "extractor": name if network is None else network.describe(),
            "samples_sha256": {kind: digest_of(images) for kind, images in samples.items()},
        }
        return self.remember("frechet", key, compute)

    def probe(self) -> Json:
        """Accuracies of linear probes; "skipped" says why there are none."""
        if self.train_set.labels is None or self.test_set.labels is None:
            return self.remember("probes", {}, lambda: {"skipped": "the images have no labels"})
        fast = self.precision == "auto" and has_fast_bfloat16(self.models.device)
        return probe_pair(
            self.models.pair,
            self.train_set,
            self.test_set,
            self.probes,
            self.folder / "probes.json",
            only=PROBED,
            # With 500 + 500 images, five of the noisy model's seven probes were as accurate in
            # bfloat16. Two differed by one image.
            precision="bfloat16" if fast else self.precision,
            replace_other=True,
            again=self.only is not None,
        )


def bytes_to_compare(pictures: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Samples whose distance to real images is measured, as bytes, without diverged ones."""
    kept = {name: pictures[name] for name in COMPARED if name in pictures}
    return {name: to_bytes(x[~is_diverged(x)]) for name, x in kept.items()}


def black_share(images: Tensor) -> float:
    """The share of pixels of bytes (N, C, H, W) that are black in every colour."""
    return float((images.amax(1) == 0).double().mean())


def report(
    stages: Stages,
    title: str,
    budget: float | None = None,
    commands: Sequence[str] = (),
    *,
    trained_here: bool = False,
) -> list[str]:
    """Write results.json and report.html from the files of the stages and the logs of the runs.

    title: of the models or of their settings. budget: minutes of their training in all, commands:
    for longer training. Returns the sentences of `write_report`. Raises ValueError for a result
    that cannot be reported.
    """
    models, train_set, test_set = stages.models, stages.train_set, stages.test_set
    pictures, trained_on = stages.pictures(), len(train_set) if trained_here else None
    # Nothing in it names a path of this machine.
    results: Json = {
        **({"card": card_numbers()} if title == TITLE else {}),
        "dsmooth": __version__,
        "name": title,
        "budget_minutes": budget,
        "data": {
            "name": test_set.name,
            "embedded_subset": stages.embedded,
            "train_images": len(train_set),
            "test_images": len(test_set),
            "image_size": list(test_set.image_size),
            "image_channels": test_set.image_channels,
        },
        "machine": describe_machine(models.device),
        "runs": {
            role: describe_model(role, models, test_set, trained_on) for role in models.networks
        },
        "samples": {
            "seed": stages.seed,
            "count": {name: len(x) for name, x in pictures.items()},
            "diverged": {name: int(is_diverged(x).sum()) for name, x in pictures.items()},
        },
        **stages.results("bits_per_dim", "frechet", "receptive_field", "probes"),
    }
    histories = {str(r): run.history() for r, run in models.runs.items() if run.is_finished()}
    path = stages.folder / "report.html"
    try:
        sentences = write_report(path, results, histories, pictures, commands)
    except (AttributeError, IndexError, KeyError, TypeError, UndefinedError) as error:
        raise ValueError(
            f"{stages.folder} holds a result that cannot be reported ({error!r}): `only=STAGE` "
            "computes a stage again"
        ) from error
    write_json(stages.folder / "results.json", results)
    return sentences


def describe_model(
    role: Role, models: Loaded, test_set: ImageDataset, trained_on: int | None = None
) -> Json:
    """A model's settings and size, and its training if the run is finished.

    trained_on: size of its training set, where that is known.
    """
    network, run = models.networks[role], models.runs.get(role)
    parameters = sum(p.numel() for p in network.parameters())
    if run is None:
        smoothing = models.pair.smoothing
        noise = {"smoothing": smoothing.kind, "scale": smoothing.scale}
        return {"settings": {"model": asdict(network.config), **noise}, "parameters": parameters}
    config = run.read_config()[0]
    settings = {key: value for key, value in asdict(config).items() if key != "data_dir"}
    description = {"settings": settings, "parameters": parameters}
    if not run.is_finished():
        return description
    settings["kernel_rate"] = kernel_rate(config) if config.optimizer == "muon" else None
    record = run.record()
    passes = round((record.images or 0) / trained_on, 2) if trained_on else None
    return {
        **description,
        "images": record.images,
        "training_seconds": record.seconds,
        "loss": record.loss,
        "notes": list(record.notes),
        "held_out_bits_per_dim": record.bits_per_dim,
        "held_out_images": min(config.evaluation_images, len(test_set)),
        **({"passes_over_training_set": passes} if trained_on else {}),
    }


def card_numbers() -> Json:
    """Numbers of the packaged models' card, which were measured with the whole of MNIST."""
    card = read_json(packaged()[DEFAULT] / "card.json")
    probes = card["probes"]["noisy"]["accuracy"]["noisy"]
    return {
        "train_images": card["data"]["train_images"],
        "distances": card["samples"]["of"]["two-step"]["distance"],
        "probes": {name: probe["accuracy"] for name, probe in probes.items()},
    }


def describe_machine(device: torch.device) -> Json:
    """Processor, processes, threads, GPUs in use, and versions."""
    size, gpu = rank_and_size()[1], None
    if device.type == "cuda":
        number = min(size, torch.cuda.device_count())
        gpu = f"{number} x " * (number > 1) + torch.cuda.get_device_name(device)
    return {
        "processor": cpu_name(),
        "processes": size,
        "cpu_threads": torch.get_num_threads(),
        "gpu": gpu,
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "torch": torch.__version__,
    }
