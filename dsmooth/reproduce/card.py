"""The model card of packaged models: every number is measured from the weights, then written.

    python -m dsmooth.reproduce.card --data-dir FOLDER

FOLDER has the full MNIST. A stopped call can be repeated: it goes on where it was.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from .._version import __version__
from ..config import ProbeSettings
from ..data import ImageDataset, epoch_order, load_dataset
from ..evaluate.comparison import collect_statistics
from ..evaluate.features import Features, extract_features, make_extractor
from ..evaluate.frechet import FeatureStatistics, bootstrap_error, limit_of_distances
from ..evaluate.likelihood import conventions, paper_sentence, score_pair, score_plain
from ..evaluate.probe import PIXELS, TOGETHER, best_probe, probe_pair, single_blocks
from ..files import write_atomically, write_json
from ..machine import use_threads
from ..models import Models, load_models
from ..pictures import save_side_by_side
from ..pretrained import DEFAULT, find
from ..progress import progress
from ..report.sections import (
    PAPER_PROBE,
    SINGLE_STEP,
    TITLES,
    difference_sentence,
    settings_table,
    terms_sentence,
)
from ..tables import COMPARABLE, Table, bits_table, decimals, percent
from .results import describe_machine, describe_model
from .stages import Sizes, Stages, black_share, bytes_to_compare

# Images of the embedded test set whose score a test computes again.
SLICE_IMAGES = 40
CONFIDENT_IMAGES = 1000
CONFIDENCES = (0.9, 0.99)


@dataclass(frozen=True)
class CardOptions:
    """Measure packaged models and write README.md, card.json and samples.png beside them."""

    data_dir: str
    """Folder of the full MNIST."""
    folder: Path = field(default_factory=lambda: find(DEFAULT))
    """Folder with the runs noisy, denoiser and plain."""
    work: Path = Path("card")
    """Folder for samples and for the numbers of each part, which a later call goes on from."""
    samples: int = 10_000
    """Samples of each method."""
    test_images: int = 10_000
    """Test images that are scored."""
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


def write_card(
    options: CardOptions, train_set: ImageDataset, test_set: ImageDataset
) -> dict[str, Any]:
    """Measure the models and write their card; returns the content of card.json."""
    folder, work, seed = options.folder, options.work, options.seed
    models = load_models([folder, folder / "plain"])
    for run in models.runs.values():
        if not run.is_finished():
            raise ValueError(f"{run.path} is not the folder of a finished run")
    work.mkdir(parents=True, exist_ok=True)
    sizes = Sizes(options.samples, options.test_images, extractor="mnist-classifier")
    stages = Stages(work, models, train_set, test_set, sizes, seed)
    pictures = stages.draw()
    longer = None if options.longer is None else load_models([options.longer])
    if longer is not None and longer.plain is None:
        raise ValueError(f"{options.longer} must be the run of a plain model")
    bits = stages.score(longer.plain if longer else None, n_noise=options.n_noise, seed=seed)
    if longer is not None:
        bits["longer"]["run"] = describe_model("plain", longer, test_set, len(train_set))
    probes = {}
    for kind in ("noisy", "clean"):
        settings = replace(options.probes, input=kind, seed=seed)
        path = work / f"probes-{kind}.json"
        probes[kind] = probe_pair(
            models.pair, train_set, test_set, settings, path, plain=models.plain
        )
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
    shown = [pictures[name] for name in ("plain", "noisy", "two-step")]
    save_side_by_side(shown, folder / "samples.png")
    write_json(folder / "card.json", card)
    write_atomically(folder / "README.md", render_card(card).encode())
    return card


def measure_samples(
    options: CardOptions, stages: Stages, pictures: Mapping[str, Tensor]
) -> dict[str, Any]:
    """Fréchet distances at several numbers of samples, and how sure the classifier is of them."""
    extractor = make_extractor(stages.sizes.extractor)
    train_set, test_set = stages.train_set, stages.test_set

    def features_of(images: Tensor, name: str) -> Features:
        with progress(f"features of {name}", len(images)) as done:
            return extract_features(images, extractor, progress=done)

    def statistics_of(features: Tensor, images: Tensor) -> FeatureStatistics:
        return collect_statistics(features, images, extractor)

    def compute() -> dict[str, Any]:
        real = features_of(train_set.images, "training images").features
        reference = statistics_of(real, train_set.images)
        kinds = bytes_to_compare(pictures)
        # Shuffled: the later ones of MNIST's test images are harder.
        order = epoch_order(len(test_set), 0, 0)
        kinds["test images"] = test_set.images[order[: options.samples]]
        results = {}
        for name, images in kinds.items():
            features = features_of(images, name)
            counts = sorted({min(n, len(images)) for n in options.frechet_counts})
            distances = [
                statistics_of(features.features[:n], images[:n]).distance(reference) for n in counts
            ]
            results[name] = {
                "n_images": len(images),
                "distance": dict(zip(map(str, counts), distances, strict=True)),
                "error": {
                    str(n): bootstrap_error(features.features[:n], reference, seed=options.seed)
                    for n in counts
                },
                "black": black_share(images[:CONFIDENT_IMAGES]),
                "limit": limit_of_distances(counts, distances) if len(counts) > 1 else None,
                "confident": confident_shares(features),
            }
        return {"name": extractor.distance_name, "of": results}

    cache_key = {
        "counts": list(options.frechet_counts),
        "samples": options.samples,
        "extractor": extractor.describe(),
        "weights_sha256": stages.models.digests(),
    }
    return stages.stored("frechet", "frechet", cache_key, compute)


def confident_shares(features: Features) -> dict[str, float]:
    """The share of the first images whose likeliest class has at least each probability."""
    assert features.logits is not None  # of a classifier
    best = features.logits[:CONFIDENT_IMAGES].softmax(1).amax(1)
    return {f"{least:g}": float((best >= least).double().mean()) for least in CONFIDENCES}


def measure_slice(models: Models, seed: int) -> dict[str, Any]:
    """The scores of a few images that are in the package, for a test to compute again."""
    data = load_dataset("mnist", "test")
    assert models.plain is not None  # packaged models have one
    pair = score_pair(models.pair, data, limit=SLICE_IMAGES, seed=seed)
    plain = score_plain(models.plain, data, limit=SLICE_IMAGES)
    return {
        "n_images": SLICE_IMAGES,
        "pair": conventions(pair)[0].value,
        "plain": conventions(plain)[0].value,
    }


METHODS = {
    "two-step": "two-step samples",
    "single-step": "single-step samples",
    "plain": "samples of the plain model",
    "test images": "test images (the floor)",
}

HEAD = """# MNIST: a smoothed pair and a plain PixelCNN++

Three small autoregressive models of 28 x 28 digits. `noisy` models x + noise, p(x~). `denoiser`
models p(x | x~). The two are a pair, whose samples are drawn in two steps. `plain` models x itself
and is there to compare with. The weights are float16; they compute in float32 or bfloat16.

```python
import dsmooth

pair = dsmooth.SmoothedPair.from_pretrained("mnist")
x = pair.sample(64, seed=0)  # (64, 1, 28, 28) in [-1, 1]
```

![Samples: plain model, noisy model, two-step](samples.png)

Left: the plain model. Middle: the noisy model. Right: the denoiser's draws for the noisy ones. They
are the first 64 of each, not chosen. All numbers below are of the {test} test images of MNIST,
which no model was trained on."""

LICENCE = """## Licence

The weights are under the licence of dsmooth, MIT. They were trained on MNIST, by Yann LeCun,
Corinna Cortes and Christopher J.C. Burges, which is under CC BY-SA 3.0
(`dsmooth/data/ATTRIBUTION.md`)."""


def render_card(card: Mapping[str, Any]) -> str:
    """README.md of the folder of packaged models, from the content of card.json."""
    runs, bits = card["runs"], card["bits_per_dim"]
    table = bits_table({name: bits[name]["conventions"] for name in ("pair", "plain")})
    sections = [
        HEAD.format(test=f"{card['data']['test_images']:,}"),
        "## How they were trained\n\n" + training(runs, card["data"]),
        "## Bits per dimension\n\n" + table.markdown(),
        bits_text(bits),
        "## Samples\n\n" + samples(card["samples"], card["seed"]),
        "## Linear probes\n\n" + probes(card["probes"]),
        "## Settings\n\n" + settings_table(runs).markdown(),
        "## How the numbers were made\n\n" + making(card),
        LICENCE,
    ]
    return "\n\n".join(sections) + "\n"


def bits_text(bits: Mapping[str, Any]) -> str:
    """Sentences on the table of bits/dim, and on the pair against plain models."""
    difference = bits.get("pair_less", {}).get("plain")
    readings = bits["pair"].get("paper_readings")
    sentences = [
        f"\\{COMPARABLE}.",
        terms_sentence(bits["pair"]),
        '"eq. (4)": by the reproduction paper\'s equation, which lacks an e.',
        paper_sentence(readings) if readings else "",
        difference_sentence(difference) if difference else "",
    ]
    return " ".join(filter(None, sentences))


def training(runs: Mapping[str, Any], data: Mapping[str, Any]) -> str:
    """Images, passes and time of each run, and what is not in its settings."""
    rows = [
        [
            TITLES[role],
            f"{run['parameters']:,}",
            f"{run['images']:,}",
            f"{run['passes_over_training_set']:.1f}",
            f"{run['training_seconds'] / 3600:.1f}",
        ]
        for role, run in runs.items()
    ]
    table = Table(["model", "parameters", "images seen", "passes", "hours"], rows)
    notes = [f"{TITLES[role]}: {note}." for role, run in runs.items() for note in run["notes"]]
    text = f"On the {data['train_images']:,} training images of MNIST; hours are by the clock."
    again = (
        "`dsmooth train` with `--config`, of the file of settings in a model's folder, and "
        "`--data-dir` trains it again."
    )
    return "\n\n".join([text, table.markdown(), again, *notes])


def samples(measured: Mapping[str, Any], seed: int) -> str:
    """Distances by number of samples, and how sure a classifier is of them."""
    of = {words: measured["of"][name] for name, words in METHODS.items()}
    counts = list(measured["of"]["two-step"]["distance"])
    distances = [
        [
            words,
            *(decimals(found["distance"].get(n), 3, found.get("error", {}).get(n)) for n in counts),
            decimals(found["limit"], 3),
        ]
        for words, found in of.items()
    ]
    shares = [
        [
            words,
            *map(percent, found["confident"].values()),
            percent(found["black"]) if "black" in found else "–",
        ]
        for words, found in of.items()
    ]
    levels = [f"≥ {level}" for level in measured["of"]["two-step"]["confident"]]
    return (
        f"{measured['name']}, to the training images; seed {seed}, the first N samples; ∞ by a "
        "line in 1/N; ± is the standard error over images, by the bootstrap:\n\n"
        + Table(["N", *(f"{int(n):,}" for n in counts), "∞"], distances).markdown()
        + f"\n\nShare of {CONFIDENT_IMAGES:,} images whose likeliest digit has at least so much "
        "probability by the same classifier, and share of their pixels that are black:\n\n"
        + Table(["probability", *levels, "black"], shares).markdown()
        + f"\n\n{SINGLE_STEP}"
    )


def probes(measured: Mapping[str, Any]) -> str:
    """Accuracy after each block, for both inputs."""
    settings = measured["noisy"]["asked"]
    parts = [
        f"Linear classifiers on frozen features, {settings['train_images']:,} training and "
        f"{settings['test_images']:,} test images, {settings['epochs']} passes. A block alone is "
        f'the paper\'s way: its stream ul, every value a feature. "{TOGETHER}": both streams of '
        f"all blocks, each averaged to {settings.get('together', 4)} x "
        f"{settings.get('together', 4)}; ± is the standard error."
    ]
    words = {
        "noisy": "Both networks see x~ alone, as in the paper:",
        "clean": "The noisy model sees x, the denoiser x given x~:",
    }
    for kind, sentence in words.items():
        accuracy = dict(measured[kind]["accuracy"])
        pixels = percent(accuracy.pop(PIXELS)[PIXELS]["accuracy"], 2)
        names = dict.fromkeys(name for scores in accuracy.values() for name in scores)
        rows = [
            [name, *(probe_words(scores.get(name)) for scores in accuracy.values())]
            for name in names
        ]
        parts += [
            sentence,
            Table(["after block", *accuracy], rows).markdown(),
            f"Pixels: {pixels}. {chosen_sentence(accuracy)}".strip(),
        ]
    return "\n\n".join(parts)


def chosen_sentence(accuracy: Mapping[str, Any]) -> str:
    """The probe of each network that held-out training images choose; empty if none did."""
    if not all("held_out" in score for scores in accuracy.values() for score in scores.values()):
        return ""
    best = ", ".join(f"{name} {best_probe(scores)}" for name, scores in accuracy.items())
    return f"Best on the last sixth of the training images: {best}."


def probe_words(score: Mapping[str, float] | None, digits: int = 2) -> str:
    """Test accuracy with its standard error; a dash where there is no probe."""
    if score is None:
        return "–"
    return f"{decimals(100 * score['accuracy'], digits, 100 * score['standard_error'])} %"


def making(card: Mapping[str, Any]) -> str:
    """Machine, versions, digests and the command that measures again."""
    machine = card["machine"]
    digests = "\n".join(f"- {role}: `{digest}`" for role, digest in card["weights_sha256"].items())
    return (
        f"dsmooth {card['dsmooth']}, torch {machine['torch']}, Python {machine['python']}, on "
        f"{machine['processor']}. `python -m dsmooth.reproduce.card --data-dir MNIST` measures "
        f"them again. SHA-256 of the weights:\n\n{digests}"
    )


# Bits/dim of models of others on the same test images: autoregressive ones, then flows.
PUBLISHED_BITS = (
    "transformers 0.62 to 0.64 (Katharopoulos et al., 2020); gated PixelCNN 0.81 (Lippe, 2022); "
    "flows 0.97 to 1.05 (Chen et al., 2019)"
)


def summary(card: Mapping[str, Any]) -> str:
    """The few numbers of the package's README, beside published ones."""
    bits, runs, of = card["bits_per_dim"], card["runs"], card["samples"]["of"]
    pair, plain = (bits[name]["conventions"][0] for name in ("pair", "plain"))
    kinds = [of[name] for name in ("two-step", "single-step", "plain")]
    real = of["test images"]
    most, level = list(real["distance"])[-1], list(real["confident"])[-1]
    rows = [
        [
            "bits/dim of the bytes; the pair's is a bound",
            f"≤ {decimals(pair['value'], 3, pair['standard_error'])}",
            "–",
            decimals(plain["value"], 3, plain["standard_error"]),
            PUBLISHED_BITS,
        ],
        [
            "images seen in training (hours)",
            seen_words(runs["noisy"], runs["denoiser"]),
            "–",
            seen_words(runs["plain"]),
            "–",
        ],
        *differences(bits),
        [
            f"Fréchet distance, {int(most):,} samples (test images: {real['distance'][most]:.2f})",
            *(decimals(k["distance"][most], 2, k.get("error", {}).get(most)) for k in kinds),
            "–",
        ],
        [
            f"a classifier is ≥ {percent(float(level), 0)} sure of the digit (test images: "
            f"{percent(real['confident'][level], 0)})",
            *(percent(each["confident"][level], 0) for each in kinds),
            "–",
        ],
    ]
    if "black" in real:
        words = f"black pixels (test images: {percent(real['black'], 0)})"
        rows.append([words, *(percent(each["black"], 0) for each in kinds), "–"])
    for kind, published in (("noisy", f"{PAPER_PROBE} %"), ("clean", "–")):
        accuracy = card["probes"][kind]["accuracy"]
        noisy, control = (accuracy.get(name, {}) for name in ("noisy", "plain"))
        words = f"linear probe of one block, {kind} input"
        rows.append([words, one_block(noisy), "–", one_block(control), published])
        if TOGETHER in noisy:
            scores = [probe_words(each.get(TOGETHER), 1) for each in (noisy, control)]
            rows.append([f"the same of all blocks, {kind} input", scores[0], "–", scores[1], "–"])
    head = ["", "pair, two-step", "pair, single-step", "plain model", "published"]
    text = SINGLE_STEP
    if "longer" not in bits:
        text += " At equal compute the pair and the plain model have not been compared."
    return f"{Table(head, rows).markdown()}\n\n{text}"


def differences(bits: Mapping[str, Any]) -> list[list[str]]:
    """Rows of the pair's bound less bits/dim of plain models, where that was measured."""
    rows = []
    for name, words in {"plain": "equal images", "longer": "equal compute"}.items():
        row = bits.get("pair_less", {}).get(name)
        if row:
            title = f"pair less plain at {words}, paired over {row['n_images']:,} images"
            difference = decimals(row["value"], 4, row["standard_error"])
            own = decimals(bits[name]["conventions"][0]["value"], 3)
            rows.append([title, difference, "–", own, "–"])
    return rows


def seen_words(*runs: Mapping[str, Any]) -> str:
    """Images that models saw in training, and the hours it took."""
    hours = sum(run["training_seconds"] for run in runs) / 3600
    return f"{sum(run['images'] for run in runs):,} ({hours:.1f})"


def one_block(scores: Mapping[str, Any]) -> str:
    """Accuracy after the block that is best on held-out training images, and its name."""
    blocks = single_blocks(scores)
    best = best_probe(blocks) if blocks else ""
    return f"{probe_words(blocks[best], 1)} ({best})" if best else "–"


def main() -> None:
    """Carry out `python -m dsmooth.reproduce.card`."""
    import tyro

    options = tyro.cli(CardOptions, prog="python -m dsmooth.reproduce.card")
    use_threads(options.threads)
    write_card(options, *(load_dataset("mnist", s, options.data_dir) for s in ("train", "test")))
    print(f"wrote {options.folder / 'README.md'}")


if __name__ == "__main__":
    main()
