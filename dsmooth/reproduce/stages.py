"""The experiments of a reproduction, each of which remembers its result in a file of the folder."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..config import (
    FEW_SAMPLES,
    FEW_SCORED_IMAGES,
    FEW_TEST_IMAGES,
    FEW_TRAIN_IMAGES,
    Method,
    Precision,
    ProbeSettings,
    ReproductionStage,
)
from ..data import ImageDataset, to_bytes
from ..data.order import choose_images
from ..data.reading import read_npz
from ..distributed import rank_and_size
from ..evaluate.batches import labels_for_model
from ..evaluate.comparison import compare_images, measure_images
from ..evaluate.features import make_extractor
from ..evaluate.likelihood import measure_bits
from ..evaluate.probe import PIXELS, probe_pair
from ..evaluate.receptive_field import receptive_fields
from ..files import read_json
from ..machine import has_fast_bfloat16
from ..models import Models
from ..pictures import is_diverged, save_grid
from ..progress import progress, whole
from ..remembered import remembered
from ..sampling.output import gather, write_images
from ..sampling.request import Request, digest_of
from ..smoothing import GaussianSmoothing

CHUNK = 64  # images drawn, or given to a network, at a time
GRID_IMAGES = 64  # samples in the picture of a grid
DENOISED_IMAGES = 10  # held-out images whose denoising the report shows
# Networks that are probed. The plain model never saw noise, and one untrained network is control
# enough.
PROBED = ("noisy", "denoiser", PIXELS, "untrained-noisy")
FEW_PROBES = ProbeSettings(train_images=FEW_TRAIN_IMAGES, test_images=FEW_TEST_IMAGES)
# Seconds that each part takes with the packaged models on two cores: its share of the bar.
SECONDS = {
    "drawing noisy": 5,
    "drawing two-step": 5,
    "drawing single-step": 9,
    "drawing plain": 4,
    "bits/dim of the pair": 7,
    "bits/dim of the plain model": 3,
    "features of real images": 1,
    **{f"features of {name}": 6 for name in PROBED if name != PIXELS},
    **{f"probes of {name}": 3 for name in PROBED if name != PIXELS},
}
# Pictures whose distance to real images is measured.
COMPARED = ("two-step", "single-step", "guided", "plain")


@dataclass(frozen=True)
class Stages:
    """The experiments with loaded models, as the verbs do them, in one folder.

    count: samples of each kind; the first are shown, all are compared with real images.
    scored_images: held-out images whose bits/dim are measured. extractor: as `make_extractor`
    names it; auto: the package's classifier for MNIST, none for other data. only: do this stage
    again and no other. precision: of networks, as of `dsmooth sample`; "auto" also computes the
    features of probes in bfloat16 where the device is fast at it. guidance: for a pair with
    classes, of two-step samples beside the others; by default none. Under torchrun all
    processes compute together, and rank 0 writes.
    """

    folder: Path
    models: Models
    train_set: ImageDataset
    test_set: ImageDataset
    count: int = FEW_SAMPLES
    scored_images: int = FEW_SCORED_IMAGES
    probes: ProbeSettings = FEW_PROBES
    extractor: str = "auto"
    seed: int = 0
    only: ReproductionStage | None = None
    precision: Precision = "auto"
    guidance: float = 0.0

    def run(self) -> None:
        """Do the stages that are not done, or the one that is asked for."""
        stages: dict[ReproductionStage, Callable[[], object]] = {
            "samples": self.draw,
            "bits-per-dim": self.bits_per_dim,
            "frechet": self.compare,
            "receptive-field": lambda: self.remember("receptive_field", {}, receptive_fields),
            "probes": self.probe,
        }
        with whole("the report", SECONDS):
            for name, stage in stages.items():
                if self.only in (None, name):
                    stage()

    @property
    def embedded(self) -> bool:
        """Whether the images are the package's subset of MNIST."""
        return self.test_set.source.startswith("embedded")

    @cached_property
    def subject(self) -> dict[str, Any]:
        """The models and images that every stage measures, as JSON."""
        return {
            "weights_sha256": self.models.digests(),
            "data_sha256": {"train": self.train_set.digest, "test": self.test_set.digest},
            "settings": self.models.identity(),
            "clean_noise": self.models.clean_noise,
            "seed": self.seed,
        }

    def remember(
        self,
        name: str,
        key: Mapping[str, Any],
        compute: Callable[[], Mapping[str, Any]],
        *,
        again: bool = False,
    ) -> dict[str, Any]:
        """The result in NAME.json, of this subject and key."""
        path, again = self.folder / f"{name}.json", again or self.only is not None
        return remembered(path, {**self.subject, **key}, compute, again=again)

    def results(self, *names: str) -> dict[str, dict[str, Any]]:
        """Content of the files NAME.json, without the results of other weights and images."""
        results = {}
        for name in names:
            path = self.folder / f"{name}.json"
            result = read_json(path) if path.exists() else {}
            key, subject = result.get("asked", {}), self.subject
            if key and all(
                key[field].items() <= subject[field].items()
                for field in ("weights_sha256", "data_sha256")
            ):
                results[name] = result
        return results

    def pictures(self) -> dict[str, Tensor]:
        """The images in samples/ of these weights: (N, C, H, W) by name."""
        paths = [path.with_suffix("") for path in sorted(self.folder.glob("samples/*.npz"))]
        names = [path.name for path in paths if self.results(f"samples/{path.name}")]
        return {name: self._read(name) for name in names}

    def _read(self, name: str) -> Tensor:
        return torch.from_numpy(read_npz(self.folder / "samples" / f"{name}.npz")["x"])

    def draw(self) -> None:
        """Draw samples and denoise held-out images, into samples/.

        "noisy", "two-step", "single-step", "guided" and "plain" are samples; the same x~ stands
        behind the first three. Names with "held-out" are of test images, with noise, and denoised.
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

        self.images("held-out", held_out, lambda: clean, models.n_classes)
        self.images("held-out-noisy", held_out, lambda: noised, models.n_classes)
        noisy = self.drawn("noisy", models.of("noisy"), replace(every, method="noisy"))
        for prefix, request, x_tilde in (("", every, noisy), ("held-out-", held_out, noised)):
            for method in methods:
                denoising = replace(request, method=method, x_tilde=x_tilde.to(models.device))
                self.drawn(f"{prefix}{method}", models.of("noisy", "denoiser"), denoising)
        if self.guidance:
            guided = replace(every, guidance=self.guidance)
            self.drawn("guided", models.of("noisy", "denoiser"), guided)
        if models.plain is not None:
            self.drawn("plain", models.of("plain"), every)

    def drawn(self, name: str, models: Models, request: Request) -> Tensor:
        """The images of a request, drawn from some of the models."""
        if not models.n_classes:
            request = replace(request, label=None)
        draw = models.drawer(self.precision)

        def gathered() -> Tensor | None:
            with progress(f"drawing {name}", request.count) as done:
                return gather(draw, request, CHUNK, done)

        return self.images(name, request, gathered, models.n_classes)

    def images(
        self, name: str, request: Request, draw: Callable[[], Tensor | None], n_classes: int
    ) -> Tensor:
        """The images of a request in samples/NAME.npz, with a picture beside it."""
        path = self.folder / "samples" / f"{name}.npz"

        def compute() -> dict[str, Any]:
            x = draw()
            if x is not None and rank_and_size()[0] == 0:
                save_grid(x[:GRID_IMAGES], path.with_suffix(".png"))
                write_images(path, x, request, n_classes=n_classes)
            return {}

        key = {"count": request.count, "precision": self.precision, **request.identity()}
        self.remember(f"samples/{name}", key, compute, again=not path.exists())
        return self._read(name)

    def bits_per_dim(self, n_noise: int = 1) -> dict[str, Any]:
        """Bits/dim on held-out images, of the pair by `n_noise` draws of x~ per image."""
        n = min(self.scored_images, len(self.test_set))

        def compute() -> dict[str, Any]:
            return measure_bits(
                self.models,
                self.test_set,
                limit=n,
                n_noise=n_noise,
                batch_size=CHUNK,
                seed=self.seed,
                precision=self.precision,
            )[0]

        key = {"n_images": n, "n_noise": n_noise, "precision": self.precision}
        return self.remember("bits_per_dim", key, compute)

    def compare(self) -> dict[str, Any]:
        """Fréchet distances of samples, and of equally many test images, to the training images."""
        real, name = self.train_set.images, self.extractor
        pictures = self.pictures()
        samples = {k: x for k, x in bytes_to_compare(pictures).items() if len(x) > 1}
        if name == "auto" and self.train_set.name == "mnist" and real.shape[1:] == (1, 28, 28):
            name = "mnist-classifier"
        network = None if name == "auto" else make_extractor(name, device=self.models.device)

        def compute() -> dict[str, Any]:
            if network is None:
                return {"skipped": "the package's classifier is for MNIST; name another extractor"}
            if not samples:
                return {"skipped": "there are no samples to compare"}
            _, reference = measure_images(network, "real images", real, progress=progress)
            floor = choose_images(self.test_set, max(map(len, samples.values())))
            distances: dict[str, Any] = {}
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

    def probe(self) -> dict[str, Any]:
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
