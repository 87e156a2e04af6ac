"""Pictures of a report with their captions: samples, curves, probes, receptive fields."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

import torch
from torch import Tensor

from .html import figure, grid
from .plots import curve_png, probe_png, receptive_png
from .tables import SUBJECT_TITLES

# Pictures show an 8 x 8 grid at most, whatever was drawn.
SHOWN = 64


def samples_section(results: Mapping[str, Any], pictures: Mapping[str, Tensor]) -> str:
    """The paper's Figures 2 to 4: the same x̃ behind each method, and the plain baseline."""
    runs = results["runs"]
    captions = {
        "noisy": (
            "Noisy samples x̃ ~ p(x̃)",
            "What the first model draws. The grain belongs there: it is the noise the model was "
            "trained with. Look for the shapes beneath it.",
        ),
        "two-step": (
            "Two-step samples x ~ p(x | x̃)",
            "The denoiser's draw for the noisy sample in the same place. As it learns, the grain "
            "goes and edges become sharp; where x̃ is no clear shape, neither is x.",
        ),
        "single-step": (
            "Single-step samples E[x | x̃]",
            "The posterior mean x̃ + σ²∇log p(x̃) of the same noisy samples, from the first model "
            "alone. An average over all x that fit: grey and soft, with a rest of grain.",
        ),
        "plain": (
            "Plain PixelCNN++ x ~ p(x)",
            "The baseline without smoothing, pixel by pixel on clean images." + plain_remark(runs),
        ),
    }
    figures = []
    for name, (title, text) in captions.items():
        if name not in pictures:
            continue
        x = pictures[name][:SHOWN]
        bad = results["samples"]["diverged"][name]
        if bad:
            text += f" {bad} of {len(pictures[name]):,} diverged and are shown in plain grey."
        alt = f"Grid of {len(x)} images. {title}."
        figures.append(figure(grid(x, math.isqrt(len(x) - 1) + 1), alt, title, text))
    return f'<div class="grid samples">{"".join(figures)}</div>' if figures else ""


def plain_remark(runs: Mapping[str, Any]) -> str:
    """How the baseline's training compares with the pair's."""
    if not all("images" in runs.get(role, {}) for role in ("plain", "noisy")):
        return ""
    plain, noisy = runs["plain"]["images"], runs["noisy"]["images"]
    return f" It saw {plain:,} training images, the noisy model {noisy:,}."


def denoising_section(results: Mapping[str, Any], pictures: Mapping[str, Tensor]) -> str:
    """Held-out images, noisy, and denoised: one row each."""
    names = [
        ("held-out", "held-out images x"),
        ("held-out-noisy", "x̃ = x + noise"),
        ("held-out-two-step", "a draw from p(x | x̃)"),
        ("held-out-single-step", "the mean E[x | x̃]"),
    ]
    if "held-out-two-step" not in pictures:
        return ""
    rows = [(pictures[name], words) for name, words in names if name in pictures]
    words = "; ".join(words for _, words in rows)
    x = torch.cat([row for row, _ in rows])
    return figure(
        grid(x, len(rows[0][0])),
        f"Held-out images, their noisy versions and what denoising makes of them; rows: {words}.",
        "Denoising images the models have not seen",
        f"Rows from top to bottom: {words}. The draw need not be the original: it is one image "
        "that the noisy one could have come from.",
        kind="wide",
    )


def probes_section(results: Mapping[str, Any]) -> str:
    """The paper's Figures 5 and 6: accuracy after each block of either network."""
    probes = results.get("probes")
    if probes is None:
        return ""
    if "skipped" in probes:
        return f"<p>Not measured: {escape(probes['skipped'])}.</p>"
    accuracy, asked = probes["accuracy"], probes["asked"]
    figures = []
    for name in ("noisy", "denoiser"):
        if name not in accuracy:
            continue
        light, dark = (probe_png(accuracy, name, dark=dark) for dark in (False, True))
        values = {block: 100 * entry["accuracy"] for block, entry in accuracy[name].items()}
        best = max(values, key=lambda block: values[block])
        listed = ", ".join(f"{block} {value:.1f}" for block, value in values.items())
        figures.append(
            figure(
                light,
                f"Test accuracy of linear probes after the blocks of the {name} network, in per "
                f"cent: {listed}.",
                SUBJECT_TITLES[name],
                f"Best: {values[best]:.1f} % after {best}. Per cent by block: {listed}.",
                dark,
            )
        )
    seen = {
        "noisy": "Both networks see x̃ alone",
        "clean": "The noisy model sees x, the denoiser x given x̃",
    }[asked["input"]]
    shape = {"flat": "every value of the map", "mean": "each filter's mean over the map"}
    streams = {"ul": "stream ul", "u": "stream u", "both": "streams u and ul"}[asked["stream"]]
    text = (
        f"Linear softmax classifiers on frozen features: {shape[asked['pooling']]}, {streams}, "
        f"{asked['train_images']:,} training and {asked['test_images']:,} test images, "
        f"{asked['epochs']} passes. {seen}, with one draw of noise per image. Controls: the same "
        "network untrained, and the pixels that it sees. Bars are standard errors over test images."
    )
    return side_by_side(figures) + f"<p>{escape(text)}</p>"


def receptive_section(results: Mapping[str, Any]) -> str:
    """The paper's Figure 10: a stack of masked convolutions against two streams."""
    field = results.get("receptive_field")
    if field is None:
        return ""
    titles = {"masked-stack": "One stack of masked convolutions", "two-streams": "Two streams"}
    figures = []
    for name, network in field["networks"].items():
        light, dark = (receptive_png(field, name, dark=dark) for dark in (False, True))
        text = (
            f"Of {field['causal']} earlier pixels {network['reached']} are reached and "
            f"{network['blind_spot']} are not; of the later pixels {network['leaks']} are."
        )
        alt = f"Map of the pixels that the middle one depends on. {titles[name]}: {text}"
        figures.append(figure(light, alt, titles[name], text, dark))
    text = (
        f"Gradients of small untrained networks on {field['size']} x {field['size']} pixels: what "
        "the distribution of the marked pixel depends on. A masked stack goes up and to the right "
        "by equal steps at most, so what lies flatter to the right is never seen, however deep "
        "it is. PixelCNN++ carries the rows above in a stream of their own."
    )
    return side_by_side(figures) + f"<p>{escape(text)}</p>"


def curves_section(
    results: Mapping[str, Any], histories: Mapping[str, Sequence[Mapping[str, Any]]]
) -> str:
    """One figure of the loss per model."""
    figures = []
    for role, entries in histories.items():
        run = results["runs"][role]
        png, dark = (curve_png(entries, dark=dark) for dark in (False, True))
        last, loss = f"{run['held_out_bits_per_dim']:.3f}", run["loss"].replace("x~", "x̃")
        figures.append(
            figure(
                png,
                f"Training curve of the {role} run: {loss} against images seen, ending at "
                f"{last} on held-out images.",
                SUBJECT_TITLES[role],
                f"Loss: {loss}. Line: training, with dropout if any, smoothed; dots: the averaged "
                f"weights on {run['held_out_images']:,} held-out images, {last} at the end.",
                dark,
            )
        )
    return side_by_side(figures)


def side_by_side(figures: Sequence[str]) -> str:
    """Figures in columns where the page is wide enough."""
    return f'<div class="grid curves">{"".join(figures)}</div>' if figures else ""
