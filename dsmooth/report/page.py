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

import torch
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from torch import Tensor

from ..evaluate.probe import PIXELS, best_block, best_probe
from ..fields import Json, flatten
from ..files import write_atomically
from ..pictures import grid_png
from ..tables import COMPARABLE, Table, bits_table, decimals, percent, shown
from . import plots

FOLDER = Path(__file__).parent
MIN_WIDTH = 600  # pixels of a grid


def write_report(
    path: Path,
    results: Json,
    histories: Mapping[str, Sequence[Json]],
    pictures: Mapping[str, Tensor],
    commands: Sequence[str] = (),
) -> list[str]:
    """Write the report of `results` (the content of results.json) to `path`.

    Returns the pair's bits/dim, then sentences on the training so far and on more of it.
    histories: the log of each role's run. pictures: (N, C, H, W) images by name. commands: for
    longer training.
    """
    lead, *advice = render("sentences.md", results=results, commands=commands).splitlines()
    text = render(
        "page.html",
        results=results,
        histories=histories,
        pictures=pictures,
        lead=lead,
        advice=advice,
    )
    # p(x | x~) must not break at the bar: after one, only a word joiner forbids it.
    text = text.replace(" | ", "\u00a0|\u2060\u00a0")
    text = re.sub(r"(?<![\w-])-(?=\d)", "\u2212", text)  # the minus sign of a number
    write_atomically(path, shown(text).encode())
    return [lead, *advice]


def render(name: str, folder: Path = FOLDER, **values: object) -> str:
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
    return pages.get_template(name).render(values)


def grid(*rows: Tensor) -> bytes:
    """A grid as PNG, sharp on a dense screen: one batch in a square, or several a row each."""
    x = torch.cat(rows)
    columns = len(rows[0]) if len(rows) > 1 else math.isqrt(len(x) - 1) + 1
    return grid_png(x, columns=columns, zoom=max(2, math.ceil(MIN_WIDTH / (columns * x.shape[3]))))


def settings_table(names: Mapping[str, str], runs: Json) -> Table:
    """Settings of the runs, by their keys and names; a dash where one is not recorded."""
    every = {role: flatten(run["settings"]) for role, run in runs.items()}
    for key in ("smoothing", "scale", "clean_noise"):  # which a plain model does not have
        every.get("plain", {}).pop(key, None)
    rows = [
        [words, *(setting_words(settings.get(key, "–")) for settings in every.values())]
        for key, words in names.items()
    ]
    return Table(["Setting", *runs], [row for row in rows if {*row[1:]} != {"–"}])


def setting_words(value: object) -> str:
    """A setting's value as a person writes it."""
    if isinstance(value, list):
        return ", ".join(map(setting_words, value))
    if value is None or isinstance(value, bool):
        return {None: "none", True: "yes", False: "no"}[value]
    if isinstance(value, float):
        return f"{value:g}"
    return f"{value:,}" if isinstance(value, int) else str(value)


def below_controls(accuracy: Json, title: str, name: str) -> str:
    """A sentence if a control of network `name` has a better probe than the network itself."""
    best = {one: blocks[best_probe(blocks)]["accuracy"] for one, blocks in accuracy.items()}
    controls = {
        f"untrained-{name}": "the same network untrained",
        PIXELS: "the pixels that it sees",
    }
    better = [
        f"{words} ({percent(best[control])})"
        for control, words in controls.items()
        if control in best and best[control] > best[name]
    ]
    if not better:
        return ""
    return (
        f"{title}: its best probe ({percent(best[name])}) is below that of {' and '.join(better)}."
    )
