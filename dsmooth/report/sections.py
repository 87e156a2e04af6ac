"""Sections of a report: samples, numbers beside published ones, curves and settings.

Each is a function of the content of results.json, and empty where nothing was measured.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ..evaluate.likelihood import EQUATION_4_BITS, PAPER_BITS, paper_sentence
from ..evaluate.probe import TOGETHER, best_probe, single_blocks
from ..tables import COMPARABLE, Table, bits_table, decimals, percent
from .html import Figure, Row, Section, grid, plot_figure
from .plots import curve_png, probe_png, receptive_png

# Pictures show an 8 x 8 grid at most, whatever was drawn.
GRID_IMAGES = 64
# The numbers of the reproduction paper of Meng et al. (ICLR 2021) for MNIST.
PAPER_PROBE = 98.5

SINGLE_STEP = (
    "Single-step samples are means of images and no images of bytes: fewer of their pixels are "
    "black than in data. The distance does not see that."
)

TITLES = {
    "noisy": "Noisy model",
    "denoiser": "Denoiser",
    "plain": "Plain baseline",
    "two-step": "Two-step samples",
    "single-step": "Single-step samples",
    "real": "Test images, the floor",
}
SAMPLES = {
    "noisy": (
        "Noisy samples x̃ ~ p(x̃)",
        "Draws from the first model. The grain is the noise that the model was trained with.",
    ),
    "two-step": (
        "Two-step samples x ~ p(x | x̃)",
        "The denoiser's draw for the noisy sample in the same place.",
    ),
    "single-step": (
        "Single-step samples E[x | x̃]",
        "The posterior mean x̃ + σ²∇log p(x̃) of the same noisy samples, from the first model "
        "alone: an average over all x that fit.",
    ),
    "plain": (
        "Plain PixelCNN++ x ~ p(x)",
        "The baseline without smoothing, pixel by pixel on clean images.",
    ),
}

# (key of `settings`, words); a dot leads into the model's own settings.
SETTINGS = (
    ("model.n_filters", "filters F"),
    ("model.n_resnet", "gated resnets per block R"),
    ("model.n_mix", "mixture components K"),
    ("model.dropout", "dropout"),
    ("model.conditioning", "conditioning"),
    ("model.likelihood", "likelihood"),
    ("smoothing", "smoothing noise"),
    ("scale", "its scale σ"),
    ("clean_noise", "noise on the target"),
    ("batch_size", "batch size"),
    ("learning_rate", "peak learning rate"),
    ("schedule", "learning-rate schedule"),
    ("warmup_images", "warm-up, images"),
    ("betas", "Adam's β"),
    ("clip_norm", "gradient clipped at"),
    ("ema", "largest EMA decay"),
    ("data_init", "data-dependent init"),
    ("precision", "precision"),
    ("seed", "seed"),
)


def samples_section(results: Mapping[str, Any], pictures: Mapping[str, Tensor]) -> Section:
    """Figures 2 to 4 of the paper: the same x̃ behind each method, and the plain baseline."""
    figures = []
    for name, (title, text) in SAMPLES.items():
        if name not in pictures:
            continue
        x = pictures[name][:GRID_IMAGES]
        diverged = results["samples"]["diverged"][name]
        if diverged:
            text += f" {diverged} of {len(pictures[name]):,} diverged and are shown in plain grey."
        alt = f"Grid of {len(x)} images. {title}."
        figures.append(Figure(grid(x, math.isqrt(len(x) - 1) + 1), alt, title, text))
    return [Row(figures, "samples")] if figures else []


def denoising_section(results: Mapping[str, Any], pictures: Mapping[str, Tensor]) -> Section:
    """Held-out images, noisy, and denoised: one row each."""
    names = {
        "held-out": "held-out images x",
        "held-out-noisy": "x̃ = x + noise",
        "held-out-two-step": "a draw from p(x | x̃)",
        "held-out-single-step": "the mean E[x | x̃]",
    }
    if "held-out-two-step" not in pictures:
        return []
    rows = [pictures[name] for name in names if name in pictures]
    words = "; ".join(words for name, words in names.items() if name in pictures)
    picture = Figure(
        grid(torch.cat(rows), len(rows[0])),
        f"Held-out images, their noisy versions and what denoising makes of them; rows: {words}.",
        "Denoising images the models have not seen",
        f"Rows from top to bottom: {words}. The draw need not be the original: it is one image "
        "that the noisy one could have come from.",
        wide=True,
    )
    return [picture]


def bits_section(results: Mapping[str, Any]) -> Section:
    """Bits/dim of the pair and the baseline in every convention, and the terms of the bound."""
    if "bits_per_dim" not in results:
        return []
    models = {name: results["bits_per_dim"].get(name) for name in ("pair", "plain")}
    table = bits_table({name: each["conventions"] for name, each in models.items() if each})
    pair = results["bits_per_dim"]["pair"]
    difference = results["bits_per_dim"].get("pair_less", {}).get("plain")
    draws = "one draw" if pair["n_noise"] == 1 else f"{pair['n_noise']} draws"
    text = (
        f"Averages over the first {pair['n_images']:,} held-out images, {draws} of x̃ per image. "
        f"{terms_sentence(pair)} {COMPARABLE}: of the same 8-bit images, but published numbers are "
        "over full test sets, by models trained on full training sets. A uniform guess costs 8."
    )
    if difference:
        text += f" {difference_sentence(difference)}"
    if pair["likelihood"] != "discretized":
        text += (
            " This denoiser was trained on a density; its own bound is that in units of [−1, 1], "
            "which is not comparable with discrete bits/dim."
        )
    return [table, text]


def difference_sentence(difference: Mapping[str, Any]) -> str:
    """The pair's bound against the plain model, paired over images."""
    value = decimals(difference["value"], 4, difference["standard_error"])
    return (
        f"The pair's bound less the plain model's bits/dim is {value}, paired over the same "
        f"{difference['n_images']:,} images."
    )


def terms_sentence(pair: Mapping[str, Any]) -> str:
    """The three terms of a pair's bound."""
    noisy, noise, denoiser = (decimals(pair[k]) for k in ("noisy", "smoothing", "denoiser"))
    return (
        f"The bound is the sum of {noisy} (noisy model), {noise} (the noise, known exactly) and "
        f"{denoiser} (denoiser)."
    )


def frechet_section(results: Mapping[str, Any]) -> Section:
    """Distances of the samples of each method to real images, and their floor."""
    frechet = results.get("frechet")
    if frechet is None:
        return []
    if "skipped" in frechet:
        return [f"Not measured: {frechet['skipped']}."]
    rows, remarks = [], []
    for name, distance in frechet["distances"].items():
        words = f"{TITLES[name]}\n{distance['n_images']:,} images"
        black = percent(distance["black"]) if "black" in distance else "–"
        rows.append([words, decimals(distance["value"], 3, distance.get("error")), black])
        remarks += [w for w in distance.get("warnings", ()) if w not in remarks]
        if distance.get("left_out"):
            remarks.append(f"{TITLES[name]}: {distance['left_out']:,} diverged and are left out")
    extractor = frechet["extractor"]
    embedded, count = results["data"]["embedded_subset"], frechet["reference"]["n_images"]
    card = results.get("card") if embedded else None
    subset = " of the embedded subset" if embedded else ""
    if card is not None:
        distances = " and ".join(f"{v:.2f} for {int(n):,}" for n, v in card["distances"].items())
        remarks.append(
            f"to all {card['train_images']:,} training images, of which the subset is a part, the "
            f"distance of two-step samples is {distances} samples"
        )
    text = (
        f"{frechet['name']} to the {count:,} training images{subset}. "
        f"Extractor: {extractor['name']}, SHA-256 {extractor['sha256'][:16]}…, resize: "
        f"{extractor['resize']}. Values become bytes by rounding and clamping; ± is the standard "
        f"error over images, by the bootstrap."
    )
    if "single-step" in frechet["distances"]:
        text += f" {SINGLE_STEP}"
    text = " ".join([text, *(f"{remark[0].upper()}{remark[1:]}." for remark in remarks)])
    return [Table(["Images", "distance", "black pixels"], rows), text]


def paper_section(results: Mapping[str, Any]) -> Section:
    """The measured numbers of MNIST beside the reproduction paper's, and whether they compare."""
    if results["data"]["name"] != "mnist":
        return []
    rows = [*_paper_bits(results), *_paper_frechet(results), *_paper_probes(results)]
    if not rows:
        return []
    text = (
        "Paper: the reproduction of Meng et al. (ICLR 2021) on MNIST. Its equation (4) writes the "
        f"entropy of the noise without its e, which makes bits/dim {EQUATION_4_BITS:.4f} too high."
    )
    readings = results.get("bits_per_dim", {}).get("pair", {}).get("paper_readings")
    if readings:
        text += f" {paper_sentence(readings)}"
    return [Table(["Measure", "here", "paper"], rows), text]


def _paper_bits(results: Mapping[str, Any]) -> list[list[str]]:
    """The bound, and the density of x + 0.01 n by both readings of the paper's number."""
    if "bits_per_dim" not in results:
        return []
    pair = results["bits_per_dim"]["pair"]
    why = "a density in units of [−1, 1]"
    if pair["likelihood"] == "discretized":
        why = "not comparable: a probability of bytes, the paper's a density of x + 0.01 n"
    rows = [[f"Bits/dim, two-step\n{why}", decimals(pair["value"], 3), "–"]]
    words = (
        ("per grey level", f"{PAPER_BITS}"),
        (
            "in units of [−1, 1] by equation (4) as printed; the paper's lacks its sign",
            f"−{PAPER_BITS}",
        ),
    )
    for (reading, paper), value in zip(words, pair.get("paper_readings") or (), strict=False):
        rows.append([f"Density of x + 0.01 n\n{reading}", decimals(value, 2), paper])
    return rows


def _paper_frechet(results: Mapping[str, Any]) -> list[list[str]]:
    """Fréchet distance: no published number is on the same scale."""
    distances = results.get("frechet", {}).get("distances", {})
    if "two-step" not in distances:
        return []
    name = results["frechet"]["name"]
    why = "not comparable with an FID: that means features of the 2015 Inception network"
    if name == "FID":
        why = "comparable only with as many samples and the same real images"
    return [[f"{name}, two-step\n{why}", decimals(distances["two-step"]["value"], 3), "–"]]


def _paper_probes(results: Mapping[str, Any]) -> list[list[str]]:
    """The paper's way, a probe of one block, and the probe of all blocks, of each network."""
    probes = results.get("probes", {})
    card = results.get("card") if results["data"]["embedded_subset"] else None
    rows = []
    for name in ("noisy", "denoiser"):
        scores = probes.get("accuracy", {}).get(name, {})
        blocks = single_blocks(scores)
        ways = {f"after block {best_probe(blocks)}": best_probe(blocks)} if blocks else {}
        if TOGETHER in scores:
            ways["all blocks together"] = TOGETHER
        for words, probe in ways.items():
            why = f"trained on {probes['asked']['train_images']:,} images"
            if card is not None and name == "noisy" and probe in card["probes"]:
                all_images = f"{card['train_images']:,} images"
                why += f"; {percent(card['probes'][probe])} with all {all_images}"
            paper = "–"
            if name == "noisy" and probe != TOGETHER:
                paper, why = f"{PAPER_PROBE} %", f"{why}; the paper's on its own network"
            title = f"Probe {words}, {TITLES[name].lower()}\n{why}"
            rows.append([title, percent(scores[probe]["accuracy"]), paper])
    return rows


def probes_section(results: Mapping[str, Any]) -> Section:
    """Figures 5 and 6 of the paper: accuracy after each block of either network."""
    probes = results.get("probes")
    if probes is None:
        return []
    if "skipped" in probes:
        return [f"Not measured: {probes['skipped']}."]
    accuracy, settings = probes["accuracy"], probes["asked"]
    figures = []
    for name in ("noisy", "denoiser"):
        if name not in accuracy:
            continue
        blocks = accuracy[name]
        best = best_probe(blocks)
        listed = ", ".join(f"{b} {100 * entry['accuracy']:.1f}" for b, entry in blocks.items())
        figures.append(
            plot_figure(
                partial(probe_png, accuracy, name),
                f"Test accuracy of linear probes after the blocks of the {name} network, in per "
                f"cent: {listed}.",
                TITLES[name],
                f"Best on held-out training images: {best}, {percent(blocks[best]['accuracy'])} "
                f"of the test images. Per cent by block: {listed}.",
            )
        )
    seen = {
        "noisy": "Both networks see x̃ alone",
        "clean": "The noisy model sees x, the denoiser x given x̃",
    }[settings["input"]]
    pooling, together = settings["pooling"], settings.get("together", 0)
    shape = {"flat": "every value of the map", "mean": "each filter's mean over the map"}.get(
        pooling, f"means over {pooling} x {pooling} parts of the map"
    )
    streams = {"ul": "stream ul", "u": "stream u", "both": "streams u and ul"}[settings["stream"]]
    text = (
        f"Linear softmax classifiers on frozen features: {shape}, {streams}, "
        f"{settings['train_images']:,} training and {settings['test_images']:,} test images, "
        f"{settings['epochs']} passes. {seen}, with one draw of noise per image. Controls: the "
        f"same network untrained, {'the plain model, ' * ('plain' in accuracy)}and the pixels that "
        "it sees. Bars are standard errors over test images."
    )
    if together:
        text += (
            " “together”: one classifier sees both streams of all blocks, averaged over "
            f"{together} x {together} parts."
        )
    return [Row(figures), text]


def receptive_section(results: Mapping[str, Any]) -> Section:
    """Figure 10 of the paper: a stack of masked convolutions against two streams."""
    field = results.get("receptive_field")
    if field is None:
        return []
    titles = {"masked-stack": "One stack of masked convolutions", "two-streams": "Two streams"}
    figures = []
    for name, network in field["networks"].items():
        text = (
            f"Of {field['causal']} earlier pixels {network['reached']} are reached and "
            f"{network['blind_spot']} are not; of the later pixels {network['leaks']} are."
        )
        alt = f"Map of the pixels that the middle one depends on. {titles[name]}: {text}"
        figures.append(plot_figure(partial(receptive_png, field, name), alt, titles[name], text))
    text = (
        f"Gradients of small untrained networks on {field['size']} x {field['size']} pixels: what "
        "the distribution of the marked pixel depends on. A masked stack goes up and to the right "
        "by equal steps at most, so what lies flatter to the right is never seen, however deep "
        "it is. PixelCNN++ carries the rows above in a stream of their own."
    )
    return [Row(figures), text]


def curves_section(
    results: Mapping[str, Any], histories: Mapping[str, Sequence[Mapping[str, Any]]]
) -> Section:
    """One figure of the loss per model."""
    figures = []
    for role, entries in histories.items():
        run = results["runs"][role]
        last, loss = decimals(run["held_out_bits_per_dim"], 3), run["loss"].replace("x~", "x̃")
        figures.append(
            plot_figure(
                partial(curve_png, entries),
                f"Training curve of the {role} run: {loss} against images seen, ending at "
                f"{last} on held-out images.",
                TITLES[role],
                f"Loss: {loss}. Line: training, with dropout if any, smoothed; dots: the averaged "
                f"weights on {run['held_out_images']:,} held-out images, {last} at the end.",
            )
        )
    return [Row(figures)] if figures else []


def settings_table(runs: Mapping[str, Any]) -> Table:
    """Settings of the runs; a dash where a model has none, or none is recorded."""
    rows = []
    for key, words in SETTINGS:
        values = []
        for role, run in runs.items():
            value = run["settings"]
            for part in key.split("."):
                value = value.get(part, "–")
                if value == "–":
                    break
            absent = role == "plain" and key in ("smoothing", "scale", "clean_noise")
            values.append("–" if absent else setting_words(value))
        if set(values) != {"–"}:
            rows.append([words, *values])
    return Table(["Setting", *runs], rows)


def setting_words(value: Any) -> str:
    """A setting's value as a person writes it."""
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, (list, tuple)):
        return ", ".join(map(setting_words, value))
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:g}" if isinstance(value, float) else str(value)
