"""The page report.html: figures and tables of a report under fixed captions, in one file with
pictures inline, without script or network."""

from __future__ import annotations

import base64
import math
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from .._extension import __version__
from ..data.pictures import grid_png
from ..evaluate.probe import best_probe
from ..experiments import ModelSummary, Report
from ..files import write_atomically
from ..results import COMPARABLE, bits_table
from ..text import Table, escape_control, render
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
    "test images": "Test images",
    "real": "Held-out training images",
}
DENOISED = {
    "held-out": "held-out images x",
    "held-out-noisy": "x̃ = x + noise",
    "held-out-two-step": "a draw from p(x | x̃)",
    "held-out-single-step": "the mean E[x | x̃]",
}
# Settings of the table.
NOISE = ("smoothing", "scale")
SETTINGS = (
    *("model.n_filters", "model.n_resnet", "model.n_mix", "model.dropout", "model.conditioning"),
    *("model.likelihood", *NOISE, "batch_size", "optimizer", "kernel_rate", "learning_rate"),
    *("schedule", "warmup_images", "ema", "label_dropout", "precision", "seed"),
)


def write_report(
    path: Path, report: Report, samples: Mapping[str, Tensor], held_out: Mapping[str, Tensor]
) -> None:
    """Write the page of a report to `path`; a section without numbers is left out.

    samples, held_out: as `Stages.pictures` returns them.
    """
    fields = report.receptive_fields
    figures = {name: grid(x[:SHOWN]) for name, x in samples.items()}
    figures["denoising"] = grid(*held_out.values())
    figures |= {name: receptive_png(fields, name) for name in fields.networks}
    if report.probes is not None:
        for name in ("noisy", "denoiser"):
            figures[f"probe-{name}"] = probe_png(report.probes.accuracy, name)
    page = render(
        TEMPLATE,
        title=f"Distribution smoothing on {report.data}",
        report=report,
        titles=TITLES,
        figures={name: base64.b64encode(png).decode() for name, png in figures.items()},
        denoised=[DENOISED[name] for name in held_out],
        bits=bits_table(report.bits),
        settings=settings_table(report.models),
        comparable=COMPARABLE,
        best_probe=best_probe,
        version=__version__,
    )
    write_atomically(path, escape_control(page).encode())


def grid(*rows: Tensor) -> bytes:
    """A grid as PNG, sharp on a dense screen: one batch in a square, or several a row each."""
    x = torch.cat(rows)
    columns = len(rows[0]) if len(rows) > 1 else math.isqrt(len(x) - 1) + 1
    return grid_png(x, columns=columns, zoom=max(2, math.ceil(MIN_WIDTH / (columns * x.shape[3]))))


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
