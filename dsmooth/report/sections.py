"""The page report.html: figures and tables of a report under fixed captions, in one file with
pictures inline, without script or network."""

from __future__ import annotations

import base64
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from .._extension import __version__
from ..data.pictures import grid_png
from ..evaluate.probe import best_probe
from ..files import write_atomically
from ..results import COMPARABLE, BitsResult, FrechetResult, ProbeResult, bits_table
from ..text import Table, decimals, escape_control, percent, render
from .contents import ModelSummary, Report
from .plots import probe_png, receptive_png

TEMPLATE = Path(__file__).with_name("page.html")
MIN_WIDTH = 600  # pixels of a grid
SHOWN = 64  # samples of a grid
TITLES = {
    "noisy": "Noisy model",
    "denoiser": "Denoiser",
    "plain": "Plain baseline",
    "two-step": "Two-step samples",
    "single-step": "Single-step samples",
    "guided": "Guided samples",
    "test images": "Test images",
    "real": "Held-out training images",
}
SAMPLES_TEXT = "The first samples of each kind, not selected. Diverged ones are plain grey."
DENOISING_TEXT = """Images that the models have not seen. The draw is one image that the noisy one
could have come from, not always the original."""
INTRO = """Two autoregressive models share the work. The first, p(x̃), was trained on images with
added noise (pixels lie in [−1, 1]); the second, p(x | x̃), removes the noise. Sampling is two-step:
draw x̃ from the first model, then x from the second."""
SAMPLES = {
    "noisy": ("Noisy samples x̃ ~ p(x̃)", "Draws from the first model, with the noise it learned."),
    "two-step": (
        "Two-step samples x ~ p(x | x̃)",
        "The denoiser's draw for the noisy sample in the same place.",
    ),
    "single-step": (
        "Single-step samples E[x | x̃]",
        "The posterior mean x̃ + σ²∇log p(x̃) of the same noisy samples, from the first model only: "
        "an average over all x that fit.",
    ),
    "plain": (
        "Plain PixelCNN++ x ~ p(x)",
        "The baseline without smoothing, pixel by pixel on clean images.",
    ),
}
DENOISED = {
    "held-out": "held-out images x",
    "held-out-noisy": "x̃ = x + noise",
    "held-out-two-step": "a draw from p(x | x̃)",
    "held-out-single-step": "the mean E[x | x̃]",
}
FIELDS = {"masked-stack": "One stack of masked convolutions", "two-streams": "Two streams"}
BITS_TEXT = f"""Averages over held-out images and draws of x̃; ± is the standard error over images.
{COMPARABLE}; published numbers are over full test sets, by models trained on full training sets. A
uniform guess costs 8. The bound is the sum of its terms."""
FRECHET_TEXT = """Distances to training images in the feature space of the extractor; ± is the
standard error over images, by the bootstrap. Values become bytes by rounding and clamping. The
held-out training images, which are left out of the reference and chosen as evenly as the samples,
are the floor: about what a perfect model would get. Test images are another set, in MNIST by other
writers, so samples can be nearer than they are. Single-step samples are averages of images, so
fewer of their pixels are exactly black, which the distance does not notice."""
PROBES_TEXT = """Accuracy of linear softmax classifiers on the frozen features of each block, with
one draw of noise per image. “together”: both streams of all blocks at once. The best probe is
chosen by the last sixth of the training images. Controls: the noisy model untrained, and the
pixels. Bars and ± are standard errors over test images. In the reproduction on MNIST by Karlsson,
Eriksson Möllerstedt and Bonde, which trains on 60,000 images, a probe of one block of the noisy
model classifies 98.5 % of the test images correctly."""
FIELDS_TEXT = """Gradients of small untrained networks: the pixels on which the distribution of the
marked pixel depends. A masked stack goes as far to the right as up, so part of the past stays
unseen, however deep it is. PixelCNN++ carries the rows above in a stream of their own."""
MADE_TEXT = """Settings by their names in a run. The numbers are in results.json in the same
folder; `dsmooth reproduce --budget MINUTES` trains models for longer."""
# Settings of the table.
NOISE = ("smoothing", "scale")
SETTINGS = (
    *("model.n_filters", "model.n_resnet", "model.n_mix", "model.dropout", "model.conditioning"),
    *("model.likelihood", *NOISE, "batch_size", "optimizer", "kernel_rate", "learning_rate"),
    *("schedule", "warmup_images", "ema", "label_dropout", "precision", "seed"),
)


@dataclass(frozen=True)
class Figure:
    """A picture as PNG, with its title and caption."""

    png: bytes
    title: str
    text: str

    @property
    def source(self) -> str:
        """The address of the picture's own data."""
        return f"data:image/png;base64,{base64.b64encode(self.png).decode()}"


@dataclass(frozen=True)
class Section:
    """Figures, tables and the words below them, in which `backquotes` mark code."""

    title: str
    text: str
    figures: Sequence[Figure] = ()
    tables: Sequence[Table] = ()


def write_report(path: Path, report: Report, pictures: Mapping[str, Tensor]) -> None:
    """Write the page of a report to `path`; a section without numbers is left out.

    pictures: (N, C, H, W) images by name.
    """
    samples = [
        Figure(grid(pictures[name][:SHOWN]), *words)
        for name, words in SAMPLES.items()
        if name in pictures
    ]
    shown = [name for name in DENOISED if name in pictures]
    rows = "; ".join(DENOISED[name] for name in shown)
    denoising = Figure(grid(*(pictures[name] for name in shown)), "Rows from top to bottom", rows)
    reach = report.receptive_fields
    fields = [
        Figure(
            receptive_png(reach, name),
            FIELDS[name],
            f"Of {reach.causal} earlier pixels {field.reached} are reached and {field.blind_spot} "
            f"are not; of the later pixels {field.leaks} are.",
        )
        for name, field in reach.networks.items()
    ]
    made = models_table(report.models), settings_table(report.models), facts(report)
    sections = (
        Section("Samples", SAMPLES_TEXT, samples),
        Section("Denoising", DENOISING_TEXT, [denoising]),
        Section("Bits per dimension", BITS_TEXT, tables=bits_tables(report.bits)),
        Section("Fréchet distance", FRECHET_TEXT, tables=frechet_tables(report.frechet)),
        Section("Linear probes", PROBES_TEXT, *probes(report.probes)),
        Section("Receptive fields", FIELDS_TEXT, fields),
        Section("How this was made", MADE_TEXT, tables=made),
    )
    kept = [section for section in sections if section.figures or section.tables]
    title = f"Distribution smoothing on {report.data}"
    page = render(TEMPLATE, title=title, intro=INTRO, sections=kept, version=__version__)
    # p(x | x~) must not break at the bar: after one, only a word joiner forbids it.
    page = page.replace(" | ", "\u00a0|\u2060\u00a0")
    page = re.sub(r"(?<![\w-])-(?=\d)", "\u2212", page)  # the minus sign of a number
    write_atomically(path, escape_control(page).encode())


def grid(*rows: Tensor) -> bytes:
    """A grid as PNG, sharp on a dense screen: one batch in a square, or several a row each."""
    x = torch.cat(rows)
    columns = len(rows[0]) if len(rows) > 1 else math.isqrt(len(x) - 1) + 1
    return grid_png(x, columns=columns, zoom=max(2, math.ceil(MIN_WIDTH / (columns * x.shape[3]))))


def bits_tables(result: BitsResult) -> list[Table]:
    """Bits/dim of the models, and the terms of the pair's bound."""
    pair, difference = result.models["pair"], result.difference
    rows = [
        ["held-out images", f"{pair.n_images:,}"],
        ["draws of x̃ per image", str(pair.n_noise)],
        ["class labels", pair.classes],
        ["−log p(x̃), noisy model", decimals(pair.terms.noisy)],
        ["log q(x̃ | x), the noise", decimals(pair.terms.smoothing)],
        ["−log p(x | x̃), denoiser", decimals(pair.image_term)],
    ]
    if difference is not None:
        value = decimals(difference.value, error=difference.error)
        rows.append(["pair − plain model, paired over the same images", value])
    return [bits_table(result), Table(["Bound of the pair", "bits/dim"], rows)]


def frechet_tables(result: FrechetResult | None) -> list[Table]:
    """Distances of samples and of real images, and the extractor."""
    if result is None:
        return []
    rows = [
        [
            TITLES[name],
            f"{distance.n_images:,}",
            decimals(distance.value, 3, distance.error),
            percent(distance.black),
        ]
        for name, distance in result.distances.items()
    ]
    extractor = result.extractor
    facts = [
        ["reference", f"{result.n_reference:,} training images"],
        ["extractor", f"{extractor.name}, SHA-256 {extractor.sha256[:16]}…"],
        ["resize", extractor.resize],
        *(["note", warning] for warning in result.warnings),
    ]
    head = ["Images", "number", result.name, "black pixels"]
    return [Table(head, rows), Table(["Distance", ""], facts)]


def probes(result: ProbeResult | None) -> tuple[list[Figure], list[Table]]:
    """Accuracies of linear probes."""
    if result is None:
        return [], []
    accuracy, settings = result.accuracy, result.settings
    figures = []
    for name in ("noisy", "denoiser"):
        blocks = (f"{block} {100 * x.accuracy:.1f}" for block, x in accuracy[name].items())
        text = f"Per cent by block: {', '.join(blocks)}."
        figures.append(Figure(probe_png(accuracy, name), TITLES[name], text))
    rows = []
    for name, scores in accuracy.items():
        best = scores[block := best_probe(scores)]
        rows.append([TITLES.get(name, name), block, percent(best.accuracy, 1, best.error)])
    counts = f"{settings.train_images:,} training and {settings.test_images:,} test images"
    return figures, [Table(["Probe", "best block", counts], rows)]


def models_table(models: Mapping[str, ModelSummary]) -> Table:
    """Sizes and training of the models; a dash for a model whose training is not recorded."""
    rows = []
    for role, model in models.items():
        run = model.training
        seen = ["–"] * 3
        if run is not None:
            bits = decimals(run.held_out_bits, 3)
            seen = [f"{run.images:,}", f"{run.seconds / 60:.1f}", f"{bits}\n{run.loss}"]
        rows.append([TITLES[role], f"{model.parameters:,}", *seen])
    head = ["Model", "parameters", "images seen", "minutes", "held-out bits/dim at the end"]
    return Table(head, rows)


def settings_table(models: Mapping[str, ModelSummary]) -> Table:
    """Settings of the models by their names in config.json; a dash for one not recorded."""
    rows = []
    for name in SETTINGS:
        # A plain model ignores the settings of the noise.
        values = (
            None if role == "plain" and name in NOISE else model.settings.get(name)
            for role, model in models.items()
        )
        cells = ("–" if x is None else f"{x:g}" if type(x) is float else str(x) for x in values)
        rows.append([name, *cells])
    return Table(["Setting", *models], rows)


def facts(report: Report) -> Table:
    """Data, seed and machine."""
    machine, size = report.machine, " x ".join(map(str, report.image_size))
    source = "the subset in the package" if report.embedded else "files"
    rows = {
        "models": report.name,
        "data": f"{report.data}, {source}",
        "images": f"{report.train_images:,} training, {report.test_images:,} test, {size} pixels",
        "seed": report.seed,
        "diverged samples": ", ".join(f"{kind} {n}" for kind, n in report.diverged.items()),
        "processor": machine.processor,
        "CPU threads": machine.cpu_threads,
        "GPU": machine.gpu or "none",
        "system": machine.system,
        "versions": f"Python {machine.python}, torch {machine.torch}, dsmooth {machine.dsmooth}",
    }
    return Table(["Run", ""], [[name, str(value)] for name, value in rows.items()])
