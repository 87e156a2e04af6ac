"""Draw the figures of the documentation: python tools/draw_figures.py

Each function below is one figure, written as SVG into docs/figures/.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Patch

FOLDER = Path(__file__).resolve().parents[1] / "docs" / "figures"
INK, GREY, PAPER = "#222222", "#8a8a8a", "#ffffff"
KNOWN, NOW, READ, NOTED = "#d9dde3", "#2f6db3", "#f2c14e", "#d9622b"
STYLE: dict[Any, Any] = {
    "font.family": ["DejaVu Sans", "sans-serif"],
    "font.size": 9,
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "text.color": INK,
    "svg.fonttype": "none",  # text stays text
    "svg.hashsalt": "dsmooth",  # the same file from every run
}


def normal(t: np.ndarray | float, sigma: float) -> np.ndarray:
    return np.exp(-0.5 * np.square(t / sigma)) / sigma


def arrow(axes: Axes, start: tuple[float, float], end: tuple[float, float]) -> None:
    style = {"arrowstyle": "-|>", "color": INK}
    axes.annotate("", end, start, arrowprops=style, annotation_clip=False)


def legend(figure: Figure, entries: dict[str, str]) -> None:
    """A row of colours with their words below the panels."""
    squares = [Patch(facecolor=c, edgecolor=GREY, label=words) for words, c in entries.items()]
    figure.legend(
        handles=squares, loc="outside lower center", ncols=len(entries), frameon=False,
        handlelength=1, handleheight=1,
    )  # fmt: skip


def grid(axes: Axes, title: str, colours: Sequence[Sequence[str]], below: str = "") -> None:
    """Square cells in these colours."""
    palette = sorted({colour for row in colours for colour in row})
    places = np.array([[palette.index(colour) for colour in row] for row in colours])
    axes.pcolormesh(places, cmap=ListedColormap(palette), edgecolors=GREY, linewidth=0.8)
    axes.set(title=title, xlabel=below, aspect="equal", xticks=[], yticks=[])
    axes.invert_yaxis()
    axes.spines[:].set_color(GREY)


def two_step() -> Figure:
    """Smoothing and two-step sampling in one dimension."""
    figure, panels = plt.subplots(1, 3, figsize=(9, 2.6), layout="constrained")
    peaks = ((-0.75, 0.30), (-0.45, 0.12), (0.15, 0.22), (0.5, 0.26), (0.8, 0.10))
    t, narrow, sigma, x_tilde, x = np.linspace(-1.5, 1.5, 401), 0.02, 0.3, 0.3, 0.15
    data, noisy = (
        np.sum([w * normal(t - m, width) for m, w in peaks], axis=0)
        for width in (narrow, np.hypot(narrow, sigma))
    )
    shown = (
        ("data  p(x)", "steep peaks", data, GREY, None),
        ("noisy model  p(x~)", "smooth: easy to learn", noisy, NOW, (x_tilde, "1. draw x~")),
        (
            *("denoiser  p(x | x~)", "peaks again, near x~"),
            *(data * normal(x_tilde - t, sigma), NOTED, (x, "2. draw x")),
        ),
    )
    for axes, (title, remark, density, colour, drawn) in zip(panels, shown, strict=True):
        axes.plot(t, density / density.max(), color=colour)
        axes.axhline(0, color=GREY, linewidth=0.8, zorder=0)
        axes.set_title(title, pad=18)
        axes.text(0.5, 1.02, remark, color=GREY, ha="center", transform=axes.transAxes)
        if drawn:
            axes.plot(drawn[0], 0, "o", color=colour)
            axes.text(drawn[0], -0.2, drawn[1], ha="center")
        axes.set_ylim(-0.25, 1.1)
        axes.axis("off")
    for axes, words in zip(panels[1:], ("+ noise", "given x~"), strict=True):
        arrow(axes, (-2.15, 0.5), (-1.55, 0.5))
        axes.text(-1.85, 0.57, words, ha="center")
    figure.supxlabel("Training goes by the first arrow, sampling starts at the middle.", size=9)
    return figure


def streams() -> Figure:
    """Pixels that the streams u and ul see."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(5.6, 2.9), layout="constrained")
    for axes, name, before in ((left, "stream u", PAPER), (right, "stream ul", READ)):
        row = [before] * 4 + [NOTED] + [PAPER] * 3
        grid(axes, name, [[NOW] * 8] * 4 + [row] + [[PAPER] * 8] * 3)
    arrow(right, (-1.6, 4), (-0.1, 4))
    legend(figure, {"the pixel": NOTED, "rows above": NOW, "left in its row": READ})
    return figure


def sampling() -> Figure:
    """Activations that plain and cached sampling compute for one pixel."""
    figure, panels = plt.subplots(1, 3, figsize=(8.6, 3.2), layout="constrained")
    row = [[KNOWN] * 2 + [READ] * 2 + [NOW] + [PAPER] * 3]
    known, read, paper = [KNOWN] * 8, [READ] * 8, [PAPER] * 8
    shown = (
        ("plain", [[NOW] * 8] * 8, "for every pixel:\nthe whole image again"),
        (
            *("cached: a row begins", [known] * 2 + [read] * 2 + [[NOW] * 8] + [paper] * 3),
            "once per row: all that depends\nonly on the rows above",
        ),
        (
            *("cached: a pixel", [known] * 4 + row + [paper] * 3),
            "for every pixel: its own column\nof activations, then draw it",
        ),
    )
    for axes, (title, colours, below) in zip(panels, shown, strict=True):
        grid(axes, title, colours, below)
        axes.add_patch(plt.Rectangle((4, 4), 1, 1, fill=False, edgecolor=NOTED, linewidth=2))
    entries = {"computed now": NOW, "read from a cache": READ, "known": KNOWN}
    legend(figure, entries | {"not yet drawn": PAPER})
    return figure


def gated_resnet() -> Figure:
    """The gated resnet, step by step: what eager PyTorch writes, and what the kernels do."""
    figure, axes = plt.subplots(figsize=(9, 2.5), layout="constrained")
    steps = "concat_elu", "conv 1", "+ nin(skip)", "concat_elu", "dropout", "conv 2", "gate", "+ x"
    rows = (
        (1, "eager PyTorch: every step writes its result", range(8), PAPER),
        (0, "Triton kernels: operands of products, h and y are written", (0, 2, 4, 7), KNOWN),
    )
    for y, title, stored, colour in rows:
        axes.text(-0.45, y + 0.35, title, size=10, weight="bold")
        axes.plot((-0.65, 7.6), (y, y), color=INK, linewidth=1, zorder=0)
        axes.text(-0.7, y, "x", size=11, ha="right", va="center")
        axes.text(7.7, y, "y", size=11, va="center")
        for x, step in enumerate(steps):
            box = ((x - 0.42, y - 0.17), 0.84, 0.34)
            axes.add_patch(plt.Rectangle(*box, facecolor=colour, edgecolor=GREY))
            axes.text(x, y, step, ha="center", va="center")
        axes.plot([x + 0.5 for x in stored], [y] * len(stored), "o", color=NOTED)
    for first, last, name in ((0, 0, "operands"), (1, 4, "hidden"), (5, 7, "gate")):
        ends = (first - 0.4, last + 0.4)
        axes.plot(np.repeat(ends, 2), (-0.25, -0.32, -0.32, -0.25), color=NOW, linewidth=1)
        axes.text(sum(ends) / 2, -0.5, name, color=NOW, ha="center")
    axes.plot(5.6, 1.42, "o", color=NOTED)
    axes.text(5.72, 1.42, "a tensor in memory", va="center")
    axes.set(xlim=(-0.9, 8), ylim=(-0.6, 1.6))
    axes.axis("off")
    return figure


def main() -> None:
    for draw in (two_step, streams, sampling, gated_resnet):
        about = {"Date": None, "Title": draw.__doc__}
        with mpl.rc_context(STYLE):
            draw().savefig(FOLDER / f"{draw.__name__}.svg", metadata=about)
        print(f"docs/figures/{draw.__name__}.svg")


if __name__ == "__main__":
    main()
