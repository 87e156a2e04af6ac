"""The stages of a reproduction after training: each is computed once and read from then on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, get_args

import torch
from torch import Tensor

from ..config import Method, ProbeSettings, ReproductionStage, Role
from ..data import ImageDataset, to_bytes
from ..distributed import barrier
from ..evaluate.comparison import collect_statistics, compare_images
from ..evaluate.features import extract_features, make_extractor
from ..evaluate.likelihood import bits_per_dim, score_pair, score_plain
from ..evaluate.probe import probe_pair
from ..evaluate.receptive_field import receptive_fields
from ..files import read_json
from ..machine import default_device
from ..models import Models
from ..pictures import is_diverged
from ..progress import progress
from ..sampling.cached import Sampler
from ..sampling.output import DrawPart
from ..sampling.request import Progress, Request
from ..smoothing import GaussianSmoothing
from .cache import Mode, cached_images, cached_json, digest_of

STAGES: tuple[ReproductionStage, ...] = get_args(ReproductionStage)
BATCH = 64  # images scored at a time
DENOISED_IMAGES = 10  # held-out images whose denoising the report shows
# Pictures whose distance to real images is measured.
COMPARED = ("two-step", "single-step", "plain")


@dataclass(frozen=True)
class Sizes:
    """How many images the stages draw and look at. Raises ValueError for numbers below 1."""

    count: int = 1000
    """Samples of each kind; the first are shown, all are compared with real images."""
    scored_images: int = 1000
    """Held-out images whose bits/dim are measured."""
    probes: ProbeSettings = field(
        default_factory=lambda: ProbeSettings(train_images=2000, test_images=1000)
    )
    """How linear probes are made."""
    extractor: str = "auto"
    """Extractor of the Fréchet distance, as `make_extractor` names it; auto: the package's
    classifier for MNIST, none for other data."""

    def __post_init__(self) -> None:
        for name in ("count", "scored_images"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")


def draw_all(
    folder: Path,
    models: Models,
    test_set: ImageDataset,
    count: int,
    seed: int,
    mode: Mode = "go on",
) -> dict[str, Tensor]:
    """The pictures of the report: (N, C, H, W) by name, drawn or read from `folder`.

    "noisy", "two-step", "single-step" and "plain" are `count` samples; the same x~ stands behind
    the first three. "held-out", "held-out-noisy", "held-out-two-step" and
    "held-out-single-step" are test images, with noise, and denoised.
    In mode "read" only those are there that are in `folder`.
    """
    folder.mkdir(exist_ok=True)
    barrier()
    pair, weights = models.pair, models.digests()
    drawer, sampler = pair.drawer(), Sampler()
    pictures: dict[str, Tensor] = {}

    def draw(
        name: str,
        method: Method,
        roles: Sequence[Role] = ("noisy", "denoiser"),
        x_tilde: Tensor | None = None,
    ) -> None:
        """Draw images, or denoise x_tilde, by the networks of `roles`."""
        request = Request(count if x_tilde is None else len(x_tilde), seed, method=method)
        cache_key = {
            "count": request.count,
            **request.how(),
            "weights_sha256": [weights[role] for role in roles],
        }

        def draw_part(part: Request, report: Progress) -> Tensor:
            if x_tilde is None:
                return drawer.draw(part, sampler, report)
            noisy = x_tilde[part.first_index :][: part.count].to(models.device)
            return drawer.draw_clean(noisy, part, sampler, report)

        if x_tilde is not None:
            cache_key["given_sha256"] = digest_of(x_tilde)
        part: DrawPart = draw_part
        if "plain" in roles:
            alone = {role: models.networks[role] for role in roles}
            part = replace(models, networks=alone, smoothed=None).drawer(request, sampler)
        x = cached_images(folder / name, request, cache_key, part, mode)
        if x is not None:
            pictures[name] = x

    draw("noisy", "noisy", ["noisy"])
    clean = test_set.batch(torch.arange(min(DENOISED_IMAGES, len(test_set))))
    pictures["held-out"] = clean
    pictures["held-out-noisy"] = pair.smoothing.sample(clean, seed=seed, first_index=0, repeat=0)
    for prefix in ("", "held-out-"):
        x_tilde = pictures.get(f"{prefix}noisy")
        if x_tilde is None:
            continue
        draw(f"{prefix}two-step", "two-step", x_tilde=x_tilde)
        if isinstance(pair.smoothing, GaussianSmoothing):
            draw(f"{prefix}single-step", "single-step", x_tilde=x_tilde)
    if models.plain is not None:
        draw("plain", "two-step", ["plain"])
    return pictures


def score_all(
    path: Path,
    models: Models,
    test_set: ImageDataset,
    limit: int,
    mode: Mode = "go on",
    **settings: Any,
) -> dict[str, Any]:
    """Bits/dim of the pair and of the baseline on held-out images, in every convention.

    settings: n_noise and seed of `score_pair`.
    """
    n = min(limit, len(test_set))

    def compute() -> dict[str, Any]:
        with progress("scoring held-out images", n) as done:
            scores = score_pair(
                models.pair,
                test_set,
                limit=n,
                batch_size=BATCH,
                clean_noise=models.clean_noise,
                progress=done,
                **settings,
            )
        result = {"unit": "bits/dim", "pair": asdict(bits_per_dim(scores))}
        if models.plain is not None:
            with progress("scoring the plain model", n) as done:
                scores = score_plain(
                    models.plain, test_set, limit=n, batch_size=BATCH, progress=done
                )
            result["plain"] = asdict(bits_per_dim(scores))
        return result

    cache_key = {"n_images": n, **settings, "weights_sha256": models.digests()}
    return cached_json(path, cache_key, compute, mode)


def bytes_to_compare(pictures: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Samples whose distance to real images is measured, as bytes, without diverged ones."""
    kept = {name: pictures[name] for name in COMPARED if name in pictures}
    return {name: to_bytes(x[~is_diverged(x)]) for name, x in kept.items()}


def compare_all(
    path: Path,
    models: Models,
    pictures: Mapping[str, Tensor],
    train_set: ImageDataset,
    test_set: ImageDataset,
    extractor: str,
    mode: Mode = "go on",
) -> dict[str, Any]:
    """Fréchet distances of the samples of each method to the training images, with their floor.

    The floor is the distance of as many test images. Without an extractor that suits the data the
    result says under "skipped" why there is none.
    """
    digits = train_set.name == "mnist" and tuple(train_set.images.shape[1:]) == (1, 28, 28)
    samples = {name: x for name, x in bytes_to_compare(pictures).items() if len(x) > 1}
    count = max(map(len, samples.values()), default=0)

    network = None
    if extractor != "auto" or digits:
        name = "mnist-classifier" if extractor == "auto" else extractor
        network = make_extractor(name, device=default_device())

    def compute() -> dict[str, Any]:
        if network is None:
            return {"skipped": "the package's classifier is for MNIST; name another by --extractor"}
        if not samples:
            return {"skipped": "there are no samples to compare"}
        with progress("features of real images", len(train_set)) as done:
            features, _ = extract_features(train_set.images, network, progress=done)
        reference = collect_statistics(features, train_set.images, network)
        distances: dict[str, Any] = {}
        real: dict[str, Any] = {}
        for name, images in samples.items():
            floor = None if real else test_set.images[:count]
            result = compare_images(images, reference, network, floor=floor, progress=progress)
            real = real or {"value": result.floor, "n_images": result.n_floor}
            distances[name] = {
                "value": result.value,
                "n_images": result.n_samples,
                "left_out": len(pictures[name]) - len(images),
                "warnings": list(result.warnings),
            }
        return {
            "unit": "squared distance in feature space",
            "name": network.distance_name,
            "extractor": network.describe(),
            "reference": {"split": "train", "n_images": len(train_set)},
            "distances": {**distances, "real": real},
        }

    cache_key = {
        "extractor": extractor if network is None else network.describe(),
        "samples_sha256": {name: digest_of(images) for name, images in samples.items()},
        "weights_sha256": models.digests(),
    }
    return cached_json(path, cache_key, compute, mode)


def probe_all(
    path: Path,
    models: Models,
    train_set: ImageDataset,
    test_set: ImageDataset,
    settings: ProbeSettings,
    mode: Mode = "go on",
) -> dict[str, Any]:
    """Accuracies of linear probes; "skipped" says why there are none for data without labels."""
    if mode == "read":
        return read_json(path) if path.exists() else {}
    if train_set.labels is None or test_set.labels is None:
        return {"skipped": "the images have no labels"}
    if mode == "redo":
        path.unlink(missing_ok=True)
        barrier()
    return probe_pair(models.pair, train_set, test_set, settings, path, replace_other=True)


def see_receptive_fields(path: Path, mode: Mode = "go on") -> dict[str, Any]:
    """The pixels that a pixel depends on, in a masked stack and in two streams."""
    return cached_json(path, {"networks": 2}, receptive_fields, mode)
