"""The model card of packaged models, as Markdown, from the numbers in card.json."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..evaluate.probe import BLOCKS, PIXELS
from .tables import PAPER_PROBE, SUBJECT_TITLES, settings_rows

METHODS = {
    "two-step": "two-step samples",
    "single-step": "single-step samples",
    "plain": "samples of the plain model",
    "test images": "test images (the floor)",
}


def render_card(card: Mapping[str, Any]) -> str:
    """README.md of the folder of packaged models."""
    runs = card["runs"]
    sections = [
        HEAD.format(test=f"{card['data']['test_images']:,}"),
        "## How they were trained\n\n" + training(runs, card["data"]),
        "## Bits per dimension\n\n" + bits(card["bits_per_dim"]),
        "## Samples\n\n" + samples(card["samples"], card["seed"]),
        "## Linear probes\n\n" + probes(card["probes"]),
        "## Settings\n\n" + settings(runs),
        "## How the numbers were made\n\n" + making(card),
        LICENCE,
    ]
    return "\n\n".join(sections) + "\n"


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


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table whose columns after the first hold numbers."""
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def training(runs: Mapping[str, Any], data: Mapping[str, Any]) -> str:
    """Images, passes and time of each run, and what is not in its settings."""
    rows = [
        [
            SUBJECT_TITLES[role],
            f"{run['parameters']:,}",
            f"{run['images']:,}",
            f"{run['passes_over_training_set']:.1f}",
            f"{run['training_seconds'] / 3600:.1f}",
        ]
        for role, run in runs.items()
    ]
    text = (
        f"On the {data['train_images']:,} training images of MNIST, each model in one thread of a "
        "two-core CPU that other work shared; hours are by the clock, waiting included."
    )
    again = (
        "`dsmooth train` with `--config`, of the file of settings in a model's folder, and "
        "`--data-dir` trains it again."
    )
    notes = [
        f"{SUBJECT_TITLES[role]}: {note}." for role, run in runs.items() for note in run["notes"]
    ]
    head = ["model", "parameters", "images seen", "passes", "hours"]
    return "\n\n".join([text, table(head, rows), again, *notes])


def bits(measured: Mapping[str, Any]) -> str:
    """Every convention of the pair and of the plain model."""
    rows = [
        [
            f"{name}: {row['name']}{' *' if row['comparable'] else ''}",
            f"{row['value']:.4f}",
            error(row["standard_error"]),
            error(row["repeat_error"]),
            error(row["equation_4"]),
        ]
        for name in ("pair", "plain")
        for row in measured[name]["conventions"]
    ]
    pair = measured["pair"]
    text = (
        "\\* Comparable with discrete bits/dim of the literature. The bound is the sum of "
        f"{pair['noisy']:.4f} (noisy model), {pair['smoothing']:.4f} (the noise, exact) and "
        f'{pair["denoiser"]:.4f} (denoiser). "eq. (4)": what the reproduction paper\'s equation, '
        "which lacks an e, would give."
    )
    head = ["", "bits/dim", "± images", "± repeats", "by eq. (4)"]
    return f"{table(head, rows)}\n\n{text}"


def error(value: float | None) -> str:
    """Four decimals, or a dash where there is none."""
    return "–" if value is None else f"{value:.4f}"


def samples(measured: Mapping[str, Any], seed: int) -> str:
    """Distances by number of samples, and how sure a classifier is of them."""
    of = measured["of"]
    counts = list(of["two-step"]["distance"])
    rows = []
    for name, words in METHODS.items():
        found = of[name]
        limit = found["limit"]
        rows.append(
            [
                words,
                *(f"{found['distance'][n]:.3f}" if n in found["distance"] else "–" for n in counts),
                "–" if limit is None else f"{limit:.3f}",
            ]
        )
    sure = [
        [words, *(f"{100 * share:.1f} %" for share in of[name]["confident"].values())]
        for name, words in METHODS.items()
    ]
    levels = [f"≥ {level}" for level in of["two-step"]["confident"]]
    return (
        f"{measured['name']}, to the training images; seed {seed}, the first N samples; ∞ by a "
        "line in 1/N:\n\n"
        + table(["N", *(f"{int(n):,}" for n in counts), "∞"], rows)
        + "\n\nShare of 1,000 images whose likeliest digit has at least so much probability by the "
        "same classifier:\n\n" + table(["probability", *levels], sure)
    )


def probes(measured: Mapping[str, Any]) -> str:
    """Accuracy after each block, for both inputs."""
    parts = []
    words = {
        "noisy": "Both networks see x~ alone, as in the paper:",
        "clean": "The noisy model sees x, the denoiser x given x~:",
    }
    for kind, sentence in words.items():
        accuracy = measured[kind]["accuracy"]
        subjects = [name for name in accuracy if name != PIXELS]
        rows = [
            [block, *(f"{100 * accuracy[name][block]['accuracy']:.2f} %" for name in subjects)]
            for block in BLOCKS
        ]
        pixels = f"{100 * accuracy[PIXELS][PIXELS]['accuracy']:.2f} %"
        head = ["after block", *(name.replace("-", " ") for name in subjects)]
        parts.append(f"{sentence}\n\n{table(head, rows)}\n\nPixels: {pixels}.")
    asked = measured["noisy"]["asked"]
    return (
        f"Linear classifiers on frozen features, {asked['train_images']:,} training and "
        f"{asked['test_images']:,} test images, {asked['epochs']} passes.\n\n" + "\n\n".join(parts)
    )


def settings(runs: Mapping[str, Any]) -> str:
    """The settings of the runs side by side."""
    return table(["", *runs], [[words, *values] for words, values in settings_rows(runs)])


def summary(card: Mapping[str, Any]) -> str:
    """The few numbers of the README, beside published ones."""
    pair, plain = (card["bits_per_dim"][name]["conventions"][0] for name in ("pair", "plain"))
    of = card["samples"]["of"]
    most = list(of["two-step"]["distance"])[-1]
    level = list(of["two-step"]["confident"])[-1]
    real = of["test images"]
    rows = [
        [
            "bits/dim of the bytes; the pair's is a bound",
            f"≤ {pair['value']:.3f} ± {pair['standard_error']:.3f}",
            f"{plain['value']:.3f} ± {plain['standard_error']:.3f}",
            "Residual Flow 0.97, FFJORD 0.99, Glow 1.05 (Chen et al., 2019)",
        ],
        [
            f"Fréchet distance, {int(most):,} samples (test images: {real['distance'][most]:.2f})",
            *(f"{of[name]['distance'][most]:.2f}" for name in ("two-step", "plain")),
            "–",
        ],
        [
            f"a classifier is ≥ {100 * float(level):.0f} % sure of the digit (test images: "
            f"{100 * real['confident'][level]:.0f} %)",
            *(f"{100 * of[name]['confident'][level]:.0f} %" for name in ("two-step", "plain")),
            "–",
        ],
    ]
    for kind, published in (("noisy", f"{PAPER_PROBE} %"), ("clean", "–")):
        blocks = card["probes"][kind]["accuracy"]["noisy"]
        best = max(BLOCKS, key=lambda block: blocks[block]["accuracy"])
        value = f"{100 * blocks[best]['accuracy']:.1f} % (noisy model, {best})"
        rows.append([f"best linear probe, {kind} input", value, "–", published])
    return table(["", "pair, two-step", "plain model", "published"], rows)


def making(card: Mapping[str, Any]) -> str:
    """Machine, versions, digests and the command that measures again."""
    machine = card["machine"]
    digests = "\n".join(f"- {role}: `{digest}`" for role, digest in card["weights_sha256"].items())
    return (
        f"dsmooth {card['dsmooth']}, torch {machine['torch']}, Python {machine['python']}, on "
        f"{machine['processor']}. `python -m dsmooth.reproduce.card --data-dir MNIST` measures "
        f"them again. SHA-256 of the weights:\n\n{digests}"
    )
