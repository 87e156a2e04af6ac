"""Texts of a reproduction from templates: report.html, and the lines that the command prints.

report.html is one file, with pictures inline, without script or network. The templates have its
words, and read the numbers of results.json.
"""

from __future__ import annotations

import base64
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from torch import Tensor

from ..evaluate.probe import PIXELS, best_block, best_probe
from ..fields import flatten
from ..files import write_atomically
from ..pictures import grid_png
from ..tables import COMPARABLE, Table, bits_table, decimals, percent, shown
from . import plots

FOLDER = Path(__file__).parent
MIN_WIDTH = 600  # pixels of a grid


def write_report(
    path: Path,
    results: Mapping[str, Any],
    histories: Mapping[str, Sequence[Mapping[str, Any]]],
    pictures: Mapping[str, Tensor],
    commands: Sequence[str] = (),
) -> list[str]:
    """Write the report of `results` (the content of results.json) to `path`.

    Returns the pair's bits/dim, then sentences on the training so far and on more of it.
    histories: the log of each role's run. pictures: (N, C, H, W) images by name, as
    `dsmooth.reproduce.stages.Stages.draw` returns them. commands: for longer training.
    """
    lead, *advice = render("sentences.md", results=results, commands=commands).splitlines()
    text = render(
        "page.html",
        results=results,
        histories=histories,
        pictures=pictures,
        curves=held_out_curves(results["runs"], histories),
        lead=lead,
        advice=advice,
    )
    # p(x | x~) must not break at the bar: after one, only a word joiner forbids it.
    text = text.replace(" | ", "\u00a0|\u2060\u00a0")
    text = re.sub(r"(?<![\w-])-(?=\d)", "\u2212", text)  # the minus sign of a number
    write_atomically(path, shown(text).encode())
    return [lead, *advice]


def render(name: str, folder: Path = FOLDER, **numbers: Any) -> str:
    """The text of a template of `folder`, which may import from those here; HTML is escaped."""
    html = name.endswith(".html")
    pages = Environment(
        loader=FileSystemLoader([folder, FOLDER]),
        autoescape=html,
        undefined=StrictUndefined,
        trim_blocks=not html,
        keep_trailing_newline=True,
    )
    pages.filters |= {"decimals": decimals, "percent": percent, "thousands": "{:,}".format}
    functions = (best_block, best_probe, below_controls, bits_table, grid, settings_table)
    pages.globals |= {each.__name__: each for each in functions}
    pages.globals |= {"COMPARABLE": COMPARABLE, "base64": base64, "plots": plots}
    return pages.get_template(name).render(numbers)


def grid(*rows: Tensor) -> bytes:
    """A grid as PNG: one batch in a square, or several batches a row each.

    The grid is sharp on a dense screen, and diverged images are plain grey.
    """
    x = torch.cat(rows)
    columns = len(rows[0]) if len(rows) > 1 else math.isqrt(len(x) - 1) + 1
    zoom = max(2, math.ceil(MIN_WIDTH / (columns * x.shape[3])))
    return grid_png(x, columns=columns, zoom=zoom)


def settings_table(names: Mapping[str, str], runs: Mapping[str, Any]) -> Table:
    """Settings of the runs, by their keys and names; a dash where one is not recorded."""
    every = {role: flatten(run["settings"]) for role, run in runs.items()}
    for key in ("smoothing", "scale", "clean_noise"):  # which a plain model does not have
        every.get("plain", {}).pop(key, None)
    rows = [
        [words, *(_setting_words(settings.get(key, "–")) for settings in every.values())]
        for key, words in names.items()
    ]
    return Table(["Setting", *runs], [row for row in rows if {*row[1:]} != {"–"}])


def _setting_words(value: Any) -> str:
    """A setting's value as a person writes it."""
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list):
        return ", ".join(map(_setting_words, value))
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:g}" if isinstance(value, float) else str(value)


def held_out_curves(
    runs: Mapping[str, Any], histories: Mapping[str, Sequence[Mapping[str, Any]]]
) -> dict[str, list[tuple[int, float]]] | None:
    """The pair's bound and the plain model's bits/dim; None without three runs of such numbers.

    Each is a list of (images seen, bits/dim). Both are of the probability of bytes, so they may be
    compared. The runs must end at the same number of images: in the middle of a schedule bits/dim
    say little of a run that ends there.
    """
    roles = ("noisy", "denoiser", "plain")
    if not set(roles) <= histories.keys():
        return None
    if len({runs[role].get("images") for role in roles}) > 1:
        return None
    settings = runs["noisy"]["settings"]
    likelihoods = {runs[role]["settings"]["model"]["likelihood"] for role in roles[1:]}
    if settings["smoothing"] != "gaussian" or likelihoods != {"discretized"}:
        return None
    noisy, denoiser, plain = (
        [(e["images"], e["bits_per_dim"]) for e in histories[role] if e["event"] == "evaluation"]
        for role in roles
    )
    entropy = 0.5 * math.log2(2 * math.pi * math.e * settings["scale"] ** 2)
    if not noisy:
        return None
    seen, bits = zip(*noisy, strict=True)
    pair = [
        # The noisy model's by a line in the logarithm of the images.
        (n, float(np.interp(math.log(n), np.log(seen), bits)) + value - entropy)
        for n, value in denoiser
        if seen[0] <= n <= seen[-1]
    ]
    return {"pair": pair, "plain": plain} if len(pair) > 1 and len(plain) > 1 else None


def below_controls(accuracy: Mapping[str, Any], title: str, name: str) -> str:
    """A sentence if a control of network `name` has a better probe than the network itself."""
    best = {
        words: accuracy[subject][best_probe(accuracy[subject])]["accuracy"]
        for subject, words in (
            (name, title),
            (f"untrained-{name}", "the same network untrained"),
            (PIXELS, "the pixels that it sees"),
        )
        if subject in accuracy
    }
    trained = best.pop(title)
    better = [f"{words} ({percent(value)})" for words, value in best.items() if value > trained]
    if not better:
        return ""
    return f"{title}: its best probe ({percent(trained)}) is below that of {' and '.join(better)}."
