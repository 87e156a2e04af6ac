"""The stages of a reproduction after training: each is computed once and read from then on."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
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
from ..distributed import barrier, rank_and_size
from ..evaluate.batches import labels_for_model
from ..evaluate.comparison import compare_images, measure_images
from ..evaluate.features import make_extractor
from ..evaluate.likelihood import bits_per_dim, paired_difference, score_pair, score_plain
from ..evaluate.probe import PIXELS, probe_key, probe_pair
from ..evaluate.receptive_field import receptive_fields
from ..fields import check_whole
from ..files import read_json, write_json
from ..machine import autocast, has_fast_bfloat16
from ..models import Models
from ..pictures import is_diverged, save_grid
from ..progress import progress, whole
from ..sampling.output import gather, write_images
from ..sampling.request import Label, Request, digest_of
from ..smoothing import GaussianSmoothing

KEY = "asked"  # the field of a stored result that holds all that decides it
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
    "bits/dim of held-out images": 7,
    "bits/dim of the plain model": 3,
    "features of real images": 1,
    **{f"features of {name}": 6 for name in PROBED if name != PIXELS},
    **{f"probes of {name}": 3 for name in PROBED if name != PIXELS},
}
# Pictures whose distance to real images is measured.
COMPARED = ("two-step", "single-step", "guided", "plain")


@dataclass(frozen=True)
class Sizes:
    """How many images the stages draw and look at. Raises ValueError for numbers below 1.

    count: samples of each kind; the first are shown, all are compared with real images.
    scored_images: held-out images whose bits/dim are measured. extractor: as `make_extractor`
    names it; auto: the package's classifier for MNIST, none for other data.
    """

    count: int = FEW_SAMPLES
    scored_images: int = FEW_SCORED_IMAGES
    probes: ProbeSettings = FEW_PROBES
    extractor: str = "auto"

    def __post_init__(self) -> None:
        check_whole(self, ["count", "scored_images"], 1)


@dataclass(frozen=True)
class Stages:
    """The stages for some models in one folder; a result is computed unless it is there.

    only: compute this stage again and no other. Results of the others are read if they are there
    and of these weights and images, whatever their sizes. precision: of networks, as of
    `dsmooth sample`. guidance: for a pair with classes, of two-step samples beside the others; by
    default none. Under torchrun all processes compute together, and rank 0 writes.
    """

    folder: Path
    models: Models
    train_set: ImageDataset
    test_set: ImageDataset
    sizes: Sizes
    seed: int = 0
    only: ReproductionStage | None = None
    precision: Precision = "auto"
    guidance: float = 0.0

    def run(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """The numbers of every stage that is there, by their key in results.json; the pictures."""
        with whole("the report", SECONDS):
            pictures = self.draw()
            results = {
                "bits_per_dim": self.bits_per_dim(),
                "frechet": self.compare(pictures),
                "receptive_field": self.stored(
                    "receptive_field", {"networks": 2}, receptive_fields
                ),
                "probes": self.probe(),
            }
        return {name: result for name, result in results.items() if result}, pictures

    def stored(
        self, name: str, key: Mapping[str, Any], compute: Callable[[], dict[str, Any]]
    ) -> dict[str, Any]:
        """Read the result in NAME.json, or compute and write it; empty if neither is to be done."""
        path, stage = self.folder / f"{name}.json", name.replace("_", "-")
        barrier()  # nobody writes while another looks
        found = read_json(path) if path.exists() else {}
        key = json.loads(json.dumps(key))  # as a later call reads it
        stated = found[KEY] if isinstance(found.get(KEY), dict) else {}
        names = key.keys() & {"weights_sha256", "data_sha256"}
        kept = found if all(stated.get(name) == key[name] for name in names) else {}
        if self.only not in (None, stage):
            return kept
        if self.only is None and stated == key:
            return found
        result: dict[str, Any] = json.loads(json.dumps({KEY: key, **compute()}))
        if "skipped" in result and found and "skipped" not in found:
            return kept or result  # the numbers stay
        if rank_and_size()[0] == 0:
            write_json(path, result)
        return result

    def draw(self) -> dict[str, Tensor]:
        """The pictures of the report: (N, C, H, W) by name, drawn or read from samples/.

        "noisy", "two-step", "single-step", "guided" and "plain" are samples; the same x~ stands
        behind the first three. Names with "held-out" are of test images, with noise, and denoised.
        """
        pair = self.models.pair
        methods: tuple[Method, ...] = ("two-step",)
        if isinstance(pair.smoothing, GaussianSmoothing):
            methods = ("two-step", "single-step")
        clean = self.test_set.batch(torch.arange(min(DENOISED_IMAGES, len(self.test_set))))
        pictures: dict[str, Tensor | None] = {
            "noisy": self.images("noisy", "noisy", self.models.of("noisy")),
            "held-out": clean,
            "held-out-noisy": pair.smoothing.sample(clean, seed=self.seed, first_index=0, repeat=0),
        }
        both = self.models.of("noisy", "denoiser")
        models = self.models
        held_out = labels_for_model(self.test_set, models.n_classes, models.class_names)
        for prefix, labels in (("", None), ("held-out-", held_out)):
            x_tilde = pictures[f"{prefix}noisy"]
            for method in methods if x_tilde is not None else ():
                x = self.images(f"{prefix}{method}", method, both, x_tilde, labels)
                pictures[f"{prefix}{method}"] = x
        if self.guidance:
            pictures["guided"] = self.images("guided", "two-step", both, guidance=self.guidance)
        if self.models.plain is not None:
            plain = self.models.of("plain")
            pictures["plain"] = self.images("plain", "two-step", plain)
        return {name: x for name, x in pictures.items() if x is not None}

    def images(
        self,
        name: str,
        method: Method,
        models: Models,
        x_tilde: Tensor | None = None,
        labels: Tensor | None = None,
        guidance: float = 0.0,
    ) -> Tensor | None:
        """Images drawn from `models`, or x_tilde denoised, read from NAME.npz or drawn.

        They are of every class in turn, or of `labels`, where one of the networks has classes.
        A grid of them goes to NAME.png. None where none are there and none are to be drawn.
        """
        count = self.sizes.count if x_tilde is None else len(x_tilde)
        label: Label = None
        if models.n_classes:
            label = "each" if labels is None else labels[:count]
        given = None if x_tilde is None else x_tilde.to(models.device)
        asked: dict[str, Any] = {"method": method, "label": label, "guidance": guidance}
        request = Request(count, self.seed, x_tilde=given, **asked)
        key = {
            "count": count,
            **request.identity(),
            "settings": models.identity(),
            "weights_sha256": list(models.digests().values()),
        }
        if self.precision != "auto":
            key["precision"] = self.precision
        path = self.folder / "samples" / f"{name}.npz"
        others = self.only not in (None, "samples")
        x = None if self.only == "samples" else _stored_images(path, key, any_count=others)
        if x is not None or others:
            return x
        draw = models.drawer(self.precision)
        with progress(f"drawing {name}", count) as done:
            x = gather(draw, request, CHUNK, done)
        if x is not None:
            # A picture without its array is made again.
            save_grid(x[:GRID_IMAGES], path.with_suffix(".png"))
            write_images(path, x, request, key, n_classes=models.n_classes)
        barrier()
        return x if x is not None else _stored_images(path, key)

    def bits_per_dim(self, n_noise: int = 1) -> dict[str, Any]:
        """Bits/dim on held-out images, of the pair by so many draws of x~ per image."""
        models, n = self.models, min(self.sizes.scored_images, len(self.test_set))
        common: dict[str, Any] = {"limit": n, "batch_size": CHUNK}

        def compute() -> dict[str, Any]:
            with autocast(models.device, self.precision):
                with progress("bits/dim of held-out images", n) as done:
                    scores = score_pair(
                        models.pair,
                        self.test_set,
                        clean_noise=models.clean_noise,
                        progress=done,
                        n_noise=n_noise,
                        seed=self.seed,
                        **common,
                    )
                pair = asdict(bits_per_dim(scores))
                result: dict[str, Any] = {"unit": "bits/dim", "pair": pair, "pair_less": {}}
                if models.plain is not None:
                    with progress("bits/dim of the plain model", n) as done:
                        other = score_plain(models.plain, self.test_set, progress=done, **common)
                    result["plain"] = asdict(bits_per_dim(other))
                    result["pair_less"]["plain"] = asdict(paired_difference(scores, other))
            return result

        key = {
            "n_images": n,
            "n_noise": n_noise,
            "seed": self.seed,
            "settings": models.identity(),
            "clean_noise": models.clean_noise,
            "data_sha256": {"test": self.test_set.digest},
            "weights_sha256": models.digests(),
        }
        if self.precision == "bfloat16":
            key["precision"] = self.precision
        return self.stored("bits_per_dim", key, compute)

    def compare(self, pictures: Mapping[str, Tensor]) -> dict[str, Any]:
        """Fréchet distances of samples, and of as many test images, to the training images."""
        real, extractor = self.train_set.images, self.sizes.extractor
        digits = self.train_set.name == "mnist" and tuple(real.shape[1:]) == (1, 28, 28)
        samples = {name: x for name, x in bytes_to_compare(pictures).items() if len(x) > 1}
        count = max(map(len, samples.values()), default=0)
        network = None
        if extractor != "auto" or digits:
            name = "mnist-classifier" if extractor == "auto" else extractor
            network = make_extractor(name, device=self.models.device)

        def describe(value: float | None, error: float | None, images: Tensor) -> dict[str, Any]:
            facts = {"black": black_share(images), "n_images": len(images)}
            return {"value": value, "error": error, **facts}

        def compute() -> dict[str, Any]:
            if network is None:
                return {"skipped": "the package's classifier is for MNIST; name another extractor"}
            if not samples:
                return {"skipped": "there are no samples to compare"}
            _, reference = measure_images(network, "real images", real, progress=progress)
            others = choose_images(self.test_set, count)
            distances: dict[str, Any] = {}
            floor: dict[str, Any] = {}
            for name, images in samples.items():
                result = compare_images(
                    images, reference, network, floor=None if floor else others, progress=progress
                )
                floor = floor or describe(result.floor, result.floor_error, others)
                distances[name] = {
                    **describe(result.value, result.error, images),
                    "left_out": len(pictures[name]) - len(images),
                    "warnings": list(result.warnings),
                }
            return {
                "unit": "squared distance in feature space",
                "name": network.distance_name,
                "extractor": network.describe(),
                "reference": {"split": "train", "n_images": len(real)},
                "distances": {**distances, "real": floor},
            }

        key = {
            "extractor": extractor if network is None else network.describe(),
            "samples_sha256": {name: digest_of(images) for name, images in samples.items()},
            "data_sha256": {"train": self.train_set.digest, "test": self.test_set.digest},
            "weights_sha256": self.models.digests(),
        }
        return self.stored("frechet", key, compute)

    def probe(self) -> dict[str, Any]:
        """Accuracies of linear probes; "skipped" says why there are none."""
        fast = self.precision == "auto" and has_fast_bfloat16(self.models.device)
        how: dict[str, Any] = {
            "settings": replace(self.sizes.probes, seed=self.seed),
            "only": PROBED,
            # With 500 + 500 images, five of the noisy model's seven probes were as accurate in
            # bfloat16. Two differed by one image.
            "precision": "bfloat16" if fast else self.precision,
        }
        given = self.models.pair, self.train_set, self.test_set
        unfinished = self.folder / "probes-unfinished.json"
        writes = self.only in (None, "probes") and rank_and_size()[0] == 0

        def compute() -> dict[str, Any]:
            if self.train_set.labels is None or self.test_set.labels is None:
                return {"skipped": "the images have no labels"}
            return probe_pair(*given, path=unfinished, replace_other=True, **how)

        result = self.stored("probes", probe_key(*given, **how), compute)
        if writes:
            unfinished.unlink(missing_ok=True)
        return result


def bytes_to_compare(pictures: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Samples whose distance to real images is measured, as bytes, without diverged ones."""
    kept = {name: pictures[name] for name in COMPARED if name in pictures}
    return {name: to_bytes(x[~is_diverged(x)]) for name, x in kept.items()}


def black_share(images: Tensor) -> float:
    """The share of pixels of bytes (N, C, H, W) that are black in every colour."""
    return float((images.amax(1) == 0).double().mean())


def _stored_images(path: Path, key: Mapping[str, Any], *, any_count: bool = False) -> Tensor | None:
    """The images in `path`; None if they were drawn with another key."""
    arrays, key = read_npz(path) if path.exists() else {}, json.loads(json.dumps(key))
    stated = json.loads(str(arrays.get(KEY, "{}")))
    if any_count:
        stated["count"] = key["count"]
    return torch.from_numpy(arrays["x"]) if stated == key else None
