"""Texts of a reproduction from templates: report.html, and the lines that the command prints.

report.html is one file, with pictures inline, without script or network. The templates have its
words, and read the numbers of results.json.
"""

from __future__ import annotations

import base64
import io
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from torch import Tensor

from ..evaluate.probe import PIXELS, TOGETHER, best_block, best_probe
from ..evaluate.receptive_field import causal
from ..fields import Json, flatten
from ..files import write_atomically
from ..pictures import grid_png
from ..tables import COMPARABLE, Table, bits_table, decimals, percent, shown

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FOLDER = Path(__file__).parent
MIN_WIDTH = 600  # pixels of a grid
# Colours of plots on a light page. A dark one turns their lightness around, see page.html.
TEXT, LINE, DOTS, THIRD = "#333333", "#2f6fd0", "#b34700", "#1e7d4f"
QUIET, PALE, FAINT = "#6b7480", "#a8c2e4", "#eceef1"


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
    sentences = render("sentences.md", results=results, commands=commands).splitlines()
    text = render(
        "page.html", results=results, histories=histories, pictures=pictures, sentences=sentences
    )
    # p(x | x~) must not break at the bar: after one, only a word joiner forbids it.
    text = text.replace(" | ", "\u00a0|\u2060\u00a0")
    text = re.sub(r"(?<![\w-])-(?=\d)", "\u2212", text)  # the minus sign of a number
    write_atomically(path, shown(text).encode())
    return sentences


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
    functions = best_block, best_probe, below_controls, bits_table, grid, settings_table
    plots = curve_png, probe_png, receptive_png
    pages.globals |= {each.__name__: each for each in (*functions, *plots)}
    pages.globals |= {"COMPARABLE": COMPARABLE, "base64": base64}
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


def new_plot() -> tuple[Figure, Axes]:
    """An empty plot, and its axes."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(3.6, 2.7), dpi=220, layout="constrained")
    axes = figure.add_subplot()
    axes.tick_params(which="both", colors=TEXT)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(TEXT)
    axes.xaxis.label.set_color(TEXT)
    axes.yaxis.label.set_color(TEXT)
    return figure, axes


def png(figure: Figure, transparent: bool = True) -> bytes:
    """The plot as PNG, with the names of its lines above: the same bytes for the same content."""
    if figure.axes[0].get_legend_handles_labels()[0]:
        figure.legend(loc="outside upper center", ncols=2, frameon=False, labelcolor=TEXT)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", transparent=transparent, metadata={"Software": None})
    return buffer.getvalue()


def curve_png(entries: Sequence[Json]) -> bytes:
    """Loss in bits/dim against images seen, and held-out bits/dim as dots, by the log of a run.

    Lines stand where a schedule began again.
    """
    from matplotlib.ticker import EngFormatter

    figure, axes = new_plot()
    steps = [(e["images"], e["bits_per_dim"]) for e in entries if e["event"] == "step"]
    evaluations = [(e["images"], e["bits_per_dim"]) for e in entries if e["event"] == "evaluation"]
    means = running_mean(steps)
    if steps:
        axes.plot(*zip(*steps, strict=True), color=LINE, linewidth=0.6, alpha=0.3)
        axes.plot(*zip(*means, strict=True), color=LINE, linewidth=1.4, label="training")
    if evaluations:
        held_out = zip(*evaluations, strict=True)
        axes.plot(*held_out, "o", color=DOTS, markersize=4, zorder=3, label="held out")
    for number, images in enumerate(new_schedules(entries)):
        label = "schedule begins again" if number == 0 else None
        axes.axvline(images, color=QUIET, linewidth=1, linestyle="--", label=label)
    # The first steps start so high that they would flatten the rest.
    values = sorted(v for _, v in means + evaluations)
    if values:
        low, high = values[0], values[min(len(values) - 1, int(0.9 * len(values)))]
        margin = 0.15 * (high - low) + 0.01
        axes.set_ylim(low - margin, high + margin)
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.set(xlabel="images seen", ylabel="bits/dim")
    return png(figure)


def new_schedules(entries: Sequence[Json]) -> list[int]:
    """The images after which a run's schedule, or its optimiser, began again, by its log."""
    notes = [(e["images"], e["text"]) for e in entries if e["event"] == "note"]
    again = "schedule begun again", "optimizer began again"
    return [images for images, text in notes if any(words in text for words in again)]


def running_mean(points: Sequence[tuple[int, float]]) -> list[tuple[int, float]]:
    """Each value replaced by the mean of the 2 % of points around it."""
    reach = len(points) // 100
    near = [points[max(0, i - reach) : i + reach + 1] for i in range(len(points))]
    means = [sum(value for _, value in some) / len(some) for some in near]
    return [(images, mean) for (images, _), mean in zip(points, means, strict=True)]


def probe_png(accuracy: Json, name: str, transparent: bool = True) -> bytes:
    """Accuracy of the probe after each block of network `name`, its controls beside it.

    accuracy: the entry of that name in the result of `probe_pair`. Bars are standard errors; "all"
    is the probe of the blocks together, to which no line leads.
    """
    figure, axes = new_plot()
    lines = (
        (name, "trained", "o", "-", LINE),
        ("plain", "plain model", "^", "-.", THIRD),
        (f"untrained-{name}", "untrained", "s", "--", QUIET),
    )
    for subject, label, marker, line, colour in lines:
        results = dict(accuracy.get(subject, {}))
        joint = {"all": results.pop(TOGETHER)} if TOGETHER in results else {}
        for each, fmt, words in ((results, marker + line, label), (joint, marker, None)):
            if not each:
                continue
            heights = [100 * result["accuracy"] for result in each.values()]
            errors = [100 * result["standard_error"] for result in each.values()]
            axes.errorbar(
                [*each],
                heights,
                errors,
                fmt=fmt,
                color=colour,
                label=words,
                markersize=4,
                capsize=2,
            )
    if PIXELS in accuracy:
        height = 100 * accuracy[PIXELS][PIXELS]["accuracy"]
        axes.axhline(height, color=DOTS, linewidth=1, linestyle=":", label="pixels")
    axes.set(xlabel="after block", ylabel="test accuracy, %")
    axes.tick_params(axis="x", labelsize="small")
    return png(figure, transparent)


def receptive_png(field: Json, name: str) -> bytes:
    """The pixels that the marked one of network `name` depends on; blind spots stand out.

    field: the result of `receptive_fields`. The shade is the logarithm of the gradient.
    """
    from matplotlib.colors import LinearSegmentedColormap, ListedColormap
    from matplotlib.patches import Patch

    figure, axes = new_plot()
    influence = np.array(field["networks"][name]["influence"])
    row, column = field["pixel"]
    kinds = causal(len(influence), row, column).int().numpy()
    kinds[row, column] = 2
    axes.imshow(kinds, cmap=ListedColormap([FAINT, DOTS, TEXT]))
    # The weakest influence keeps enough colour to differ from none.
    shades = LinearSegmentedColormap.from_list("", [PALE, LINE])
    axes.imshow(np.ma.masked_equal(influence, 0), norm="log", cmap=shades)
    axes.grid(False)
    axes.set(xticks=[], yticks=[])
    axes.spines[:].set_visible(False)
    marks = ((LINE, "reached"), (DOTS, "blind spot"), (TEXT, "the pixel"), (FAINT, "later"))
    figure.legend(
        handles=[Patch(color=colour, label=label) for colour, label in marks],
        loc="outside right upper",
        frameon=False,
        labelcolor=TEXT,
    )
    return png(figure)
