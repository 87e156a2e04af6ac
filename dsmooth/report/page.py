"""report.html of a reproduction: one file, pictures inline, no script, no network.

page.html has its words, and reads the numbers of results.json.
"""

from __future__ import annotations

import base64
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from torch import Tensor

from ..evaluate.paper import EQUATION_4_BITS, PAPER_BITS, PAPER_PROBE, paper_sentence
from ..evaluate.probe import best_block, best_probe
from ..files import write_atomically
from ..pictures import grid_png, visible
from ..tables import COMPARABLE, Table, bits_table, decimals, percent
from .growth import equal_cost, held_out_curves
from .plots import curve_png, growth_png, probe_png, receptive_png

MIN_WIDTH = 600  # pixels of a grid
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


def write_report(
    path: Path,
    results: Mapping[str, Any],
    histories: Mapping[str, Sequence[Mapping[str, Any]]],
    pictures: Mapping[str, Tensor],
    commands: Sequence[str] = (),
) -> None:
    """Write the report of `results` (the content of results.json) to `path`.

    histories: the log of each role's run. pictures: (N, C, H, W) images by name, as
    `dsmooth.reproduce.stages.Stages.draw` returns them. commands: see `advice`.
    """
    page = templates(Path(__file__).parent, autoescape=True).get_template("page.html")
    text = page.render(
        results=results,
        histories=histories,
        pictures=pictures,
        lead=bound_sentence(results),
        advice=advice(results, commands),
        curves=held_out_curves(results["runs"], histories),
        equal_cost=equal_cost,
        grid=_grid,
        plot=_plot,
        curve_png=curve_png,
        growth_png=growth_png,
        probe_png=probe_png,
        receptive_png=receptive_png,
    )
    # p(x | x~) must not break at the bar: after one, only a word joiner forbids it.
    write_atomically(path, text.replace(" | ", "\u00a0|\u2060\u00a0").encode())


def templates(folder: Path, *, autoescape: bool) -> Environment:
    """Templates of reports and cards, with the numbers, tables and sentences that they share."""
    pages = Environment(
        loader=FileSystemLoader(folder),
        autoescape=autoescape,
        undefined=StrictUndefined,
        trim_blocks=not autoescape,
        keep_trailing_newline=True,
    )
    pages.filters |= {"decimals": decimals, "percent": percent, "thousands": "{:,}".format}
    functions = (best_block, best_probe, measured_bits, settings_table)
    sentences = (difference_sentence, paper_sentence, terms_sentence)
    pages.globals |= {each.__name__: each for each in (*functions, *sentences)}
    pages.globals |= {
        "COMPARABLE": COMPARABLE,
        "EQUATION_4_BITS": EQUATION_4_BITS,
        "PAPER_BITS": PAPER_BITS,
        "PAPER_PROBE": PAPER_PROBE,
        "SINGLE_STEP": SINGLE_STEP,
        "TITLES": TITLES,
    }
    return pages


def _plot(draw: Callable[..., bytes], *numbers: Any) -> tuple[str, str]:
    """A plot as URIs, for light and for dark mode."""
    return _uri(draw(*numbers, dark=False)), _uri(draw(*numbers, dark=True))


def _grid(*rows: Tensor) -> str:
    """URI of a grid: one batch in a square, or several batches a row each.

    The grid is sharp on a dense screen, and diverged images are plain grey.
    """
    x = torch.cat(rows)
    columns = len(rows[0]) if len(rows) > 1 else math.isqrt(len(x) - 1) + 1
    zoom = max(2, math.ceil(MIN_WIDTH / (columns * x.shape[3])))
    return _uri(grid_png(visible(x), columns=columns, zoom=zoom))


def _uri(png: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(png).decode("ascii")


def bound_sentence(results: Mapping[str, Any]) -> str:
    """The pair's score in one sentence."""
    if "bits_per_dim" not in results:
        return "Bits/dim were not measured yet."
    pair = results["bits_per_dim"]["pair"]
    discrete = pair["likelihood"] == "discretized"
    bound = "discrete bound" if discrete else "density bound, in [-1, 1] units,"
    return (
        f"The pair's {bound} is {decimals(pair['value'], 3, pair['standard_error'])} bits/dim on "
        f"{pair['n_images']:,} held-out images (± is the standard error over images)."
    )


def advice(results: Mapping[str, Any], commands: Sequence[str] = ()) -> list[str]:
    """Sentences on the training so far and on more of it; commands stand in backquotes.

    commands: those that train such models for longer.
    """
    runs, data, budget = results["runs"], results["data"], results["budget_minutes"]
    if "card" in results:
        return [
            "These models come with dsmooth. The README.md in their folder, pretrained/mnist in "
            "the package's (`dsmooth doctor` names it), is their card, with the numbers of all "
            "test images.",
            *(f"`{command}` trains a pair here." for command in commands),
        ]
    sentences = []
    if budget:
        fewest = min(runs["noisy"]["images"], runs["denoiser"]["images"])
        sentences.append(
            f"In {budget:.3g} minutes of training in all, each model of the pair saw {fewest:,} "
            f"images or more ({fewest / data['train_images']:.1f} passes over the training set)."
        )
    if commands:
        longer = " and ".join(f"`{command}`" for command in commands)
        trains = "trains" if len(commands) == 1 else "train"
        sentences.append(f"Quality is a matter of images seen: {longer} {trains} for longer.")
    if commands and budget and data["embedded_subset"]:
        sentences.append(
            "That fetches the full training set of MNIST: a long run on the embedded "
            f"{data['train_images']:,} images would learn them by heart."
        )
    return sentences


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


def measured_bits(bits: Mapping[str, Any]) -> Table:
    """Bits/dim of the pair and of the plain model, if there is one, in every convention."""
    return bits_table(
        {name: bits[name]["conventions"] for name in ("pair", "plain") if name in bits}
    )


def settings_table(runs: Mapping[str, Any]) -> Table:
    """Settings of the runs; a dash where a model has none, or none is recorded."""
    rows = []
    for key, words in SETTINGS:
        values = []
        for role, run in runs.items():
            value = run["settings"]
            for part in key.split("."):
                value = value.get(part, "–") if isinstance(value, Mapping) else value
            absent = role == "plain" and key in ("smoothing", "scale", "clean_noise")
            values.append("–" if absent else _setting_words(value))
        if set(values) != {"–"}:
            rows.append([words, *values])
    return Table(["Setting", *runs], rows)


def _setting_words(value: Any) -> str:
    """A setting's value as a person writes it."""
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, (list, tuple)):
        return ", ".join(map(_setting_words, value))
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:g}" if isinstance(value, float) else str(value)
