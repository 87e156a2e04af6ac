"""The model card of packaged models: every number is measured from the weights, then written.

    python -m dsmooth.reproduce.card --data-dir FOLDER

FOLDER has the full MNIST. A stopped call can be repeated: it goes on where it was.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from .._version import __version__
from ..config import ProbeSettings
from ..data import ImageDataset, epoch_order, load_dataset, to_bytes
from ..evaluate.comparison import collect_statistics
from ..evaluate.features import FeatureExtractor, Features, extract_features, make_extractor
from ..evaluate.frechet import FeatureStatistics, limit_of_distances
from ..evaluate.likelihood import conventions, score_pair, score_plain, summarise
from ..evaluate.probe import probe_pair
from ..files import write_atomically, write_json
from ..machine import use_threads
from ..models import Models, load_models
from ..nn import PixelCNNpp
from ..pictures import is_diverged, save_side_by_side
from ..pretrained import DEFAULT, find
from ..progress import progress
from ..report.card import render_card
from .results import describe_machine, describe_model
from .stages import draw_all, stored_or

# Methods whose samples are compared with real images; the floor is of test images.
COMPARED = ("two-step", "single-step", "plain")
# Images of the embedded test set whose score a test computes again.
SLICE_IMAGES = 40
PROBES = ProbeSettings()
CONFIDENT_IMAGES = 1000
CONFIDENCES = (0.9, 0.99)


@dataclass(frozen=True)
class CardSizes:
    """How many images the card's numbers are of."""

    samples: int = 10_000
    """Samples of each method."""
    test_images: int = 10_000
    """Test images that are scored."""
    n_noise: int = 4
    """Draws of x~ per image."""
    frechet_counts: tuple[int, ...] = (1000, 2000, 4000, 7000, 10_000)
    """Numbers of samples whose distances are given, and extrapolated from."""
    probes: ProbeSettings = PROBES
    """Linear probes; both inputs are measured."""


@dataclass(frozen=True)
class CardOptions:
    """Measure packaged models and write README.md, card.json and samples.png beside them."""

    data_dir: str
    """Folder of the full MNIST."""
    folder: Path = field(default_factory=lambda: find(DEFAULT))
    """Folder with the runs noisy, denoiser and plain."""
    work: Path = Path("card")
    """Folder for samples and for the numbers of each part, which a later call goes on from."""
    seed: int = 0
    """Decides noise and samples."""
    threads: int | None = None
    """CPU threads; by default all cores."""


def write_card(
    folder: Path,
    work: Path,
    splits: Sequence[ImageDataset],
    *,
    sizes: CardSizes | None = None,
    seed: int = 0,
) -> dict[str, Any]:
    """Measure the models in `folder` on (training, test) images; write their card there.

    work: see `CardOptions`. Returns the content of card.json.
    """
    sizes = sizes or CardSizes()
    train_set, test_set = splits
    models = load_models([folder, folder / "plain"])
    for run in models.runs.values():
        if not run.is_finished():
            raise ValueError(f"{run.path} is not the folder of a finished run")
    work.mkdir(parents=True, exist_ok=True)
    pictures = draw_all(work, models, test_set, sizes.samples, seed)
    measured = {
        "bits_per_dim": measure_bits(work, models, test_set, sizes, seed),
        "samples": measure_samples(
            work / "samples.json", models, pictures, train_set, test_set, sizes
        ),
        "probes": {
            kind: probe_pair(
                models.pair,
                train_set,
                test_set,
                replace(sizes.probes, input=kind, seed=seed),
                work / f"probes-{kind}.json",
                controls=False,
            )
            for kind in ("noisy", "clean")
        },
        "slice": measure_slice(models, seed),
    }
    card = {
        "dsmooth": __version__,
        "seed": seed,
        "machine": describe_machine(),
        "weights_sha256": models.digests(),
        "data": {"train_images": len(train_set), "test_images": len(test_set)},
        "runs": {
            role: describe_model(role, models, train_set, test_set) for role in models.networks
        },
        **measured,
    }
    save_side_by_side(
        [pictures[name] for name in ("plain", "noisy", "two-step")], folder / "samples.png"
    )
    write_json(folder / "card.json", card)
    write_atomically(folder / "README.md", render_card(card).encode())
    return card


def measure_bits(
    work: Path, models: Models, test_set: ImageDataset, sizes: CardSizes, seed: int
) -> dict[str, Any]:
    """Bits/dim of the pair and of the plain model in every convention."""
    n, digests = min(sizes.test_images, len(test_set)), models.digests()

    def pair() -> dict[str, Any]:
        with progress("scoring the pair", n) as done:
            scores = score_pair(
                models.pair, test_set, limit=n, n_noise=sizes.n_noise, seed=seed, progress=done
            )
        return {**asdict(summarise(scores)), "conventions": list(map(asdict, conventions(scores)))}

    def plain() -> dict[str, Any]:
        with progress("scoring the plain model", n) as done:
            scores = score_plain(plain_of(models), test_set, limit=n, progress=done)
        return {"conventions": list(map(asdict, conventions(scores)))}

    of_pair = {"noisy": digests["noisy"], "denoiser": digests["denoiser"]}
    asked = {"n_images": n, "n_noise": sizes.n_noise, "seed": seed, "weights_sha256": of_pair}
    of_plain = {"n_images": n, "weights_sha256": digests.get("plain")}
    return {
        "pair": measured(work / "bits-pair.json", asked, pair),
        "plain": measured(work / "bits-plain.json", of_plain, plain),
    }


def plain_of(models: Models) -> PixelCNNpp:
    """The plain model, which `write_card` loaded."""
    assert models.plain is not None
    return models.plain


def measure_samples(
    path: Path,
    models: Models,
    pictures: Mapping[str, Tensor],
    train_set: ImageDataset,
    test_set: ImageDataset,
    sizes: CardSizes,
) -> dict[str, Any]:
    """Fréchet distances at several numbers of samples, and how sure the classifier is of them."""
    extractor = make_extractor("mnist-classifier")

    def compute() -> dict[str, Any]:
        reference = statistics_of(train_set.images, extractor, "training images")[1]
        kinds = {name: to_bytes(pictures[name][~is_diverged(pictures[name])]) for name in COMPARED}
        # Shuffled: the later ones of MNIST's test images are harder.
        order = epoch_order(len(test_set), 0, 0)
        kinds["test images"] = test_set.images[order[: sizes.samples]]
        results = {}
        for name, images in kinds.items():
            features, _ = statistics_of(images, extractor, name)
            results[name] = {
                "n_images": len(images),
                **distances(features.features, images, extractor, reference, sizes.frechet_counts),
                "confident": confident_shares(features),
            }
        return {"name": extractor.distance_name, "of": results}

    asked = {
        "counts": list(sizes.frechet_counts),
        "samples": sizes.samples,
        "extractor": extractor.describe(),
        "weights_sha256": models.digests(),
    }
    return measured(path, asked, compute)


def statistics_of(
    images: Tensor, extractor: FeatureExtractor, what: str
) -> tuple[Features, FeatureStatistics]:
    """Features of bytes (N, C, H, W), and their statistics."""
    with progress(f"features of {what}", len(images)) as done:
        features = extract_features(images, extractor, progress=done)
    return features, collect_statistics(features.features, images, extractor)


def distances(
    features: Tensor,
    images: Tensor,
    extractor: FeatureExtractor,
    reference: FeatureStatistics,
    counts: Sequence[int],
) -> dict[str, Any]:
    """The distance of the first n to the reference for each of `counts`, and its limit."""
    ns = sorted({min(n, len(features)) for n in counts})
    values = [
        collect_statistics(features[:n], images[:n], extractor).distance(reference) for n in ns
    ]
    limit = limit_of_distances(ns, values) if len(ns) > 1 else None
    return {"distance": dict(zip(map(str, ns), values, strict=True)), "limit": limit}


def confident_shares(features: Features) -> dict[str, float]:
    """The share of the first images whose likeliest class has at least each probability."""
    assert features.logits is not None  # of a classifier
    best = features.logits[:CONFIDENT_IMAGES].softmax(1).amax(1)
    return {f"{least:g}": float((best >= least).double().mean()) for least in CONFIDENCES}


def measure_slice(models: Models, seed: int) -> dict[str, Any]:
    """The scores of a few images that are in the package, for a test to compute again."""
    data = load_dataset("mnist", "test")
    pair = score_pair(models.pair, data, limit=SLICE_IMAGES, seed=seed)
    plain = score_plain(plain_of(models), data, limit=SLICE_IMAGES)
    return {
        "n_images": SLICE_IMAGES,
        "pair": conventions(pair)[0].value,
        "plain": conventions(plain)[0].value,
    }


def measured(
    path: Path, asked: Mapping[str, Any], compute: Callable[[], dict[str, Any]]
) -> dict[str, Any]:
    """The stored result of the same question, else that of `compute`."""
    result = stored_or(path, asked, "go on", compute)
    assert result is not None  # only mode "read" gives None
    return result


def main() -> None:
    """Carry out `python -m dsmooth.reproduce.card`."""
    import tyro

    options = tyro.cli(CardOptions, prog="python -m dsmooth.reproduce.card")
    use_threads(options.threads)
    splits = [load_dataset("mnist", split, options.data_dir) for split in ("train", "test")]
    write_card(options.folder, options.work, splits, seed=options.seed)
    print(f"wrote {options.folder / 'README.md'}")


if __name__ == "__main__":
    main()
