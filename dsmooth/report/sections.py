"""The sections of report.html: words and pictures around the numbers of a report."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from ..evaluate.probe import best_block, best_probe
from ..files import write_atomically
from ..results import BlockScores
from ..tables import COMPARABLE, Table, bits_table
from ..text import decimals, escape_control, percent, render, sentence
from .contents import Card, Report
from .describe import packaged_card
from .page import Block, Figure, grid
from .plots import Curve, curve_png, probe_png, receptive_png
from .words import (
    PAPER_PROBE,
    SINGLE_STEP,
    TITLES,
    advice,
    below_controls,
    bound_sentence,
    difference_sentence,
    how_it_was_made,
    settings_table,
    terms_sentence,
)

TEMPLATE = Path(__file__).with_name("page.html")
SHOWN = 64  # samples of a grid
DATA_NAMES = {
    "mnist": "MNIST",
    "fashion-mnist": "Fashion-MNIST",
    "cifar10": "CIFAR-10",
    "celeba": "CelebA",
}
NOISE = {"gaussian": "Gaussian", "laplace": "Laplace", "uniform": "uniform"}
POOLING = {"flat": "every value of the map", "mean": "each filter's mean over the map"}
STREAMS = {"ul": "stream ul", "u": "stream u", "both": "streams u and ul"}
FLOOR_WORDS = (
    "The held-out training images, which are left out of the reference and chosen as evenly as the "
    "samples, are the floor: about what a perfect model would get; test images are another set, in "
    "MNIST by other writers, so samples can be nearer than they are."
)
FIELDS = {"masked-stack": "One stack of masked convolutions", "two-streams": "Two streams"}


def write_report(
    path: Path,
    report: Report,
    curves: Mapping[str, Curve],
    pictures: Mapping[str, Tensor],
    command: str = "",
) -> None:
    """Write the page of a report to `path`; a section without content is left out.

    curves: of each role's run. pictures: (N, C, H, W) images by name. command: trains for longer.
    """
    settings = report.models["noisy"].settings
    noise = f"{NOISE[str(settings['smoothing'])]} noise of scale {settings['scale']:g}"
    intro = (
        f"Two autoregressive models share the work. The first, p(x̃), was trained on images with "
        f"{noise} (pixels lie in [−1, 1]); the second, p(x | x̃), removes the noise. Sampling is "
        "two-step: draw x̃ from the first model, then x from the second."
    )
    data = DATA_NAMES.get(report.data.name, "your images")
    card = packaged_card() if report.origin == "packaged" else None
    blocks = {
        "Samples": samples(report, pictures),
        "Denoising": denoising(pictures),
        "Bits per dimension": bits_per_dim(report),
        "Fréchet distance": frechet(report, card),
        "Linear probes": probes(report),
        "Receptive fields": receptive_fields(report),
        "Compared with the paper": comparison_with_paper(report, card),
        "Training curves": training_curves(report, curves),
        "Better samples": [Block(text) for text in advice(report, command)],
        "How this was made": [Block(text) for text in how_it_was_made(report, data)],
        "Settings": [Block(table=settings_table(report.models))],
    }
    page = render(
        TEMPLATE,
        title=f"Distribution smoothing on {data}",
        lead=bound_sentence(report),
        intro=intro,
        sections={title: content for title, content in blocks.items() if content},
        version=report.machine.dsmooth,
    )
    # p(x | x~) must not break at the bar: after one, only a word joiner forbids it.
    page = page.replace(" | ", "\u00a0|\u2060\u00a0")
    page = re.sub(r"(?<![\w-])-(?=\d)", "\u2212", page)  # the minus sign of a number
    write_atomically(path, escape_control(page).encode())


def samples(report: Report, pictures: Mapping[str, Tensor]) -> list[Block]:
    """A grid of each kind of samples."""
    noisy = "Draws from the first model. The grain is the noise that the model was trained with."
    if report.hidden_classes:
        noisy += (
            f" Each is conditioned on one of {report.hidden_classes} classes of the model's own, "
            "in turn, which are not labels of these images."
        )
    kinds = {
        "noisy": ("Noisy samples x̃ ~ p(x̃)", noisy),
        "two-step": (
            "Two-step samples x ~ p(x | x̃)",
            "The denoiser's draw for the noisy sample in the same place.",
        ),
        "single-step": (
            "Single-step samples E[x | x̃]",
            "The posterior mean x̃ + σ²∇log p(x̃) of the same noisy samples, from the first model "
            "only: an average over all x that fit.",
        ),
        "plain": (
            "Plain PixelCNN++ x ~ p(x)",
            "The baseline without smoothing, pixel by pixel on clean images.",
        ),
    }
    figures = []
    for name, (title, text) in kinds.items():
        if name not in pictures:
            continue
        x, diverged = pictures[name][:SHOWN], report.diverged[name]
        if diverged:
            text += f" {diverged} of {len(pictures[name]):,} diverged and are shown in plain grey."
        figures.append(Figure(grid(x), f"Grid of {len(x)} images. {title}.", title, text))
    return [Block(figures=figures, layout="samples")] if figures else []


def denoising(pictures: Mapping[str, Tensor]) -> list[Block]:
    """Held-out images, noisy and denoised, a row each."""
    if "held-out-two-step" not in pictures:
        return []
    rows = {
        "held-out": "held-out images x",
        "held-out-noisy": "x̃ = x + noise",
        "held-out-two-step": "a draw from p(x | x̃)",
        "held-out-single-step": "the mean E[x | x̃]",
    }
    names = [name for name in rows if name in pictures]
    words = "; ".join(rows[name] for name in names)
    figure = Figure(
        grid(*(pictures[name] for name in names)),
        f"Held-out images, their noisy versions and the results of denoising; rows: {words}.",
        "Denoising images the models have not seen",
        f"Rows from top to bottom: {words}. The draw is one image that the noisy one could have "
        "come from, not always the original.",
    )
    return [Block(figures=[figure], layout="wide")]


def bits_per_dim(report: Report) -> list[Block]:
    """The table of bits/dim and what it compares with."""
    if report.bits is None or report.bits.pair is None:
        return []
    pair, difference = report.bits.pair, report.bits.difference
    text = [
        f"Averages over the first {pair.n_images:,} held-out images, {pair.n_noise} draw"
        f"{'s' * (pair.n_noise > 1)} of x̃ per image. {terms_sentence(pair)} {COMPARABLE}: of the "
        "same 8-bit images, but published numbers are over full test sets, by models trained on "
        "full training sets. A uniform guess costs 8.",
    ]
    if difference is not None:
        text.append(difference_sentence(difference))
    if pair.classes == "hidden":
        text.append(
            "The models saw a label of zeros, which means all of their classes; samples come from "
            "the mixture of the classes."
        )
    if pair.likelihood == "continuous":
        text.append(
            "This denoiser was trained on a density; its own bound is that in units of [−1, 1], "
            "which is not comparable with discrete bits/dim."
        )
    return [Block(table=bits_table(report.bits)), Block(" ".join(text))]


def frechet(report: Report, card: Card | None) -> list[Block]:
    """Distances of samples and of real images. card: of the packaged models."""
    result = report.frechet
    if result is None:
        return not_measured(report, "frechet")
    rows = [
        [
            f"{TITLES[name]}\n{distance.n_images:,} images",
            decimals(distance.value, 3, distance.error),
            percent(distance.black),
        ]
        for name, distance in result.distances.items()
    ]
    subset = " of the embedded subset" if report.data.embedded else ""
    extractor = result.extractor
    text = [
        f"{result.name} to {result.n_reference:,} training images{subset}. Extractor: "
        f"{extractor.name}, SHA-256 {extractor.sha256[:16]}…, resize: {extractor.resize}. Values "
        "become bytes by rounding and clamping; ± is the standard error over images, by the "
        f"bootstrap. {FLOOR_WORDS}"
    ]
    text += [SINGLE_STEP] if "single-step" in result.distances else []
    text += map(sentence, result.warnings)
    if card is not None and report.data.embedded:
        distances = card.samples["two-step"].distance.items()
        listed = ", ".join(f"{distance:.2f} for {int(n):,}" for n, distance in distances)
        text.append(
            f"To all {card.train_images:,} training images, of which the subset is a part, the "
            f"distance of two-step samples is {listed} samples."
        )
    table = Table(["Images", "distance", "black pixels"], rows)
    return [Block(table=table), Block(" ".join(text))]


def not_measured(report: Report, stage: str) -> list[Block]:
    """Why a stage has no numbers; nothing for one that was not run."""
    return [Block(f"Not measured: {report.skipped[stage]}.")] if stage in report.skipped else []


def probes(report: Report) -> list[Block]:
    """Accuracies of linear probes."""
    if report.probes is None:
        return not_measured(report, "probes")
    accuracy, settings = report.probes.accuracy, report.probes.settings
    names = [name for name in ("noisy", "denoiser") if name in accuracy]
    pooling = settings.pooling
    maps = POOLING.get(str(pooling), f"means over {pooling} x {pooling} parts of the map")
    seen = "The noisy model sees x, the denoiser x given x̃"
    if settings.input == "noisy":
        seen = "Both networks see only x̃"
    plain = "the plain model, " if "plain" in accuracy else ""
    text = [
        f"Linear softmax classifiers on frozen features: {maps}, {STREAMS[settings.stream]}, "
        f"{settings.train_images:,} training and {settings.test_images:,} test images, "
        f"{settings.epochs} passes. {seen}, with one draw of noise per image. Controls: the noisy "
        f"model untrained, {plain}and the pixels. Bars are standard errors over test images.",
    ]
    if settings.together:
        text.append(
            "“together”, in the figures “all”: one classifier sees both streams of all blocks, "
            f"averaged over {settings.together} x {settings.together} parts."
        )
    text += filter(None, (below_controls(accuracy, name) for name in names))
    figures = [probe_figure(accuracy, name) for name in names]
    return [Block(figures=figures), Block(" ".join(text))]


def probe_figure(accuracy: Mapping[str, BlockScores], name: str) -> Figure:
    """The plot of a network's probes."""
    scores = accuracy[name]
    best = best_probe(scores)
    listed = ", ".join(f"{block} {100 * score.accuracy:.1f}" for block, score in scores.items())
    return Figure(
        probe_png(accuracy, name),
        f"Test accuracy of linear probes after the blocks of the {name} network, in per cent: "
        f"{listed}.",
        TITLES[name],
        f"Best on the last sixth of the training images: {best}, "
        f"{percent(scores[best].accuracy)} of the test images. Per cent by block: {listed}.",
    )


def receptive_fields(report: Report) -> list[Block]:
    """Maps of the pixels that one depends on."""
    fields = report.receptive_fields
    if fields is None:
        return []
    figures = []
    for name, field in fields.networks.items():
        text = (
            f"Of {fields.causal} earlier pixels {field.reached} are reached and {field.blind_spot} "
            f"are not; of the later pixels {field.leaks} are."
        )
        alt = f"Map of the pixels that the middle one depends on. {FIELDS[name]}: {text}"
        figures.append(Figure(receptive_png(fields, name), alt, FIELDS[name], text))
    text = (
        f"Gradients of small untrained networks on {fields.size} x {fields.size} pixels: what the "
        "distribution of the marked pixel depends on. A masked stack goes as far to the right as "
        "up, so part of the past stays unseen, however deep it is. PixelCNN++ carries the rows "
        "above in a stream of their own."
    )
    return [Block(figures=figures), Block(text)]


def comparison_with_paper(report: Report, card: Card | None) -> list[Block]:
    """The reproduction paper's numbers for MNIST. card: of the packaged models."""
    noisy = report.probes.accuracy.get("noisy") if report.probes is not None else None
    if report.data.name != "mnist" or not (report.bits or noisy):
        return []
    text = (
        "In the reproduction on MNIST by Karlsson, Eriksson Möllerstedt and Bonde a linear probe "
        f"of one block of the noisy model classifies {PAPER_PROBE} of the test images correctly."
    )
    if noisy and report.probes is not None:
        block = best_block(noisy)
        text += (
            f" Here the probe after {block} is right on {percent(noisy[block].accuracy)}, trained "
            f"on {report.probes.settings.train_images:,} images"
        )
        if card is not None and report.data.embedded:
            with_all = card.probes["noisy"].accuracy["noisy"][block].accuracy
            text += f", and on {percent(with_all)} by all {card.train_images:,} images"
        text += "."
    return [Block(f"{text} Its 3.23 bits/dim is of a density of x + 0.01 n, and does not compare.")]


def training_curves(report: Report, curves: Mapping[str, Curve]) -> list[Block]:
    """The curves of finished runs."""
    figures = []
    for role, curve in curves.items():
        if (training := report.models[role].training) is None:
            continue
        last, loss = decimals(training.held_out_bits, 3), training.loss.replace("x~", "x̃")
        figures.append(
            Figure(
                curve_png(curve),
                f"Training curve of the {role} run: {loss} against images seen, {last} at the end "
                "on held-out images.",
                TITLES[role],
                f"Loss: {loss}. Line: training, with dropout if any, smoothed; dots: the averaged "
                f"weights on {training.held_out_images:,} held-out images, {last} at the end.",
            )
        )
    return [Block(figures=figures)] if figures else []
