"""Plots of a report as PNG: training curves, probe accuracies, receptive fields."""

from __future__ import annotations

import functools
import io
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ..evaluate.probe import PIXELS, TOGETHER
from ..evaluate.receptive_field import causal

# For a light page. A dark one turns their lightness around, see page.html.
TEXT, LINE, DOTS, THIRD = "#333333", "#2f6fd0", "#b34700", "#1e7d4f"
QUIET, FAINT = "#6b7480", "#eceef1"


def plot(paint: Callable[..., None]) -> Callable[..., bytes]:
    """A plot as PNG: `paint` gets axes and the arguments of the plot."""

    @functools.wraps(paint)
    def draw(*numbers: Any, transparent: bool = True) -> bytes:
        from matplotlib.figure import Figure

        canvas = Figure(figsize=(3.6, 2.7), dpi=220, layout="constrained")
        axes = canvas.add_subplot()
        axes.tick_params(which="both", colors=TEXT)
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
        axes.spines[["left", "bottom"]].set_color(TEXT)
        axes.xaxis.label.set_color(TEXT)
        axes.yaxis.label.set_color(TEXT)
        paint(axes, *numbers)
        return png(canvas, transparent=transparent)

    return draw


def png(canvas: Any, *, transparent: bool) -> bytes:
    """The figure as PNG, the same bytes for the same content."""
    buffer = io.BytesIO()
    canvas.savefig(buffer, format="png", transparent=transparent, metadata={"Software": None})
    return buffer.getvalue()


def legend(axes: Any) -> None:
    """Tell above the plot what its lines are."""
    if axes.get_legend_handles_labels()[0]:
        axes.figure.legend(loc="outside upper center", ncols=2, frameon=False, labelcolor=TEXT)


def images_and_bits(axes: Any) -> None:
    """Name the axes and lines of a plot of bits/dim against images."""
    from matplotlib.ticker import EngFormatter

    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.set(xlabel="images seen", ylabel="bits/dim")
    legend(axes)


@plot
def curve_png(axes: Any, entries: Sequence[Mapping[str, Any]]) -> None:
    """Loss in bits/dim against images seen; held-out bits/dim as dots.

    Lines stand where a schedule began again.
    """
    steps = [(e["images"], e["bits_per_dim"]) for e in entries if e["event"] == "step"]
    evaluations = [(e["images"], e["bits_per_dim"]) for e in entries if e["event"] == "evaluation"]
    means = running_mean(steps)
    if steps:
        axes.plot(*zip(*steps, strict=True), color=LINE, linewidth=0.6, alpha=0.3)
        axes.plot(*zip(*means, strict=True), color=LINE, linewidth=1.4, label="training")
    if evaluations:
        dots_at = list(zip(*evaluations, strict=True))
        axes.plot(*dots_at, "o", color=DOTS, markersize=4, zorder=3, label="held out")
    for number, images in enumerate(new_schedules(entries)):
        label = "schedule begins again" if number == 0 else None
        axes.axvline(images, color=QUIET, linewidth=1, linestyle="--", label=label)
    # The first steps start so high that they would flatten the rest.
    values = sorted(v for _, v in means + evaluations)
    if values:
        low, high = values[0], values[min(len(values) - 1, int(0.9 * len(values)))]
        margin = 0.15 * (high - low) + 0.01
        axes.set_ylim(low - margin, high + margin)
    images_and_bits(axes)


def new_schedules(entries: Sequence[Mapping[str, Any]]) -> list[int]:
    """The images after which a run's schedule, or its optimiser, began again, by its log."""
    notes = [(e["images"], e["text"]) for e in entries if e["event"] == "note"]
    again = "schedule begun again", "optimizer began again"
    return [images for images, text in notes if any(words in text for words in again)]


@plot
def growth_png(axes: Any, curves: Mapping[str, Any]) -> None:
    """Bits/dim of "pair" and "plain" against images seen, both axes logarithmic."""
    from matplotlib.ticker import FormatStrFormatter, NullFormatter

    for (name, curve), colour in zip(curves.items(), (LINE, DOTS), strict=True):
        axes.loglog(*zip(*curve, strict=True), "o-", color=colour, label=name, markersize=3)
    axes.xaxis.set_minor_formatter(NullFormatter())
    for which in (axes.yaxis.set_major_formatter, axes.yaxis.set_minor_formatter):
        which(FormatStrFormatter("%.2f"))
    images_and_bits(axes)


def running_mean(points: Sequence[tuple[int, float]]) -> list[tuple[int, float]]:
    """Each value replaced by the mean of the 2 % of points around it."""
    reach = len(points) // 100
    near = [points[max(0, i - reach) : i + reach + 1] for i in range(len(points))]
    means = [sum(value for _, value in some) / len(some) for some in near]
    return [(images, mean) for (images, _), mean in zip(points, means, strict=True)]


@plot
def probe_png(axes: Any, accuracy: Mapping[str, Mapping[str, Any]], name: str) -> None:
    """Accuracy of the probe after each block of network `name`, its controls beside it.

    accuracy: the entry of that name in the result of `probe_pair`. Bars are standard errors; "all"
    is the probe of the blocks together.
    """
    lines = (
        (name, "trained", "o", "-", LINE),
        ("plain", "plain model", "^", "-.", THIRD),
        (f"untrained-{name}", "untrained", "s", "--", QUIET),
    )
    for subject, label, marker, line, colour in lines:
        if subject not in accuracy:
            continue
        results = accuracy[subject]
        blocks = [block for block in results if block != TOGETHER]
        joint = [block for block in results if block == TOGETHER]
        # No line leads to the probe of all blocks.
        for names, fmt, words in ((blocks, marker + line, label), (joint, marker, None)):
            ticks = ["all" if block == TOGETHER else block for block in names]
            heights = [100 * results[block]["accuracy"] for block in names]
            errors = [100 * results[block]["standard_error"] for block in names]
            axes.errorbar(
                ticks,
                heights,
                errors,
                fmt=fmt,
                color=colour,
                label=words,
                markersize=4,
                capsize=2,
                linewidth=1.2,
            )
    if PIXELS in accuracy:
        height = 100 * accuracy[PIXELS][PIXELS]["accuracy"]
        axes.axhline(height, color=DOTS, linewidth=1, linestyle=":", label="pixels")
    axes.set(xlabel="after block", ylabel="test accuracy, %")
    axes.tick_params(axis="x", labelsize="small")
    legend(axes)


@plot
def receptive_png(axes: Any, field: Mapping[str, Any], name: str) -> None:
    """The pixels that the marked one of network `name` depends on; blind spots stand out.

    field: the result of `receptive_fields`. The shade is the logarithm of the gradient.
    """
    import numpy as np
    from matplotlib.colors import to_rgb
    from matplotlib.patches import Patch

    influence = np.array(field["networks"][name]["influence"])
    row, column = field["pixel"]
    before = causal(len(influence), row, column).numpy()
    shown = TEXT, LINE, DOTS, FAINT
    text, line, dots, faint = (np.array(to_rgb(colour)) for colour in shown)
    picture = np.broadcast_to(faint, (*influence.shape, 3)).copy()
    reached = influence > 0
    strength = np.log(influence, where=reached, out=np.zeros_like(influence))
    low, high = strength[reached].min(), strength[reached].max()
    # The weakest influence keeps enough colour to differ from none.
    share = 0.35 + 0.65 * (strength[reached] - low) / max(high - low, math.ulp(1.0))
    picture[reached] = faint + share[:, None] * (line - faint)
    picture[before & ~reached] = dots
    picture[row, column] = text
    axes.imshow(picture, interpolation="nearest")
    axes.grid(False)
    axes.set(xticks=[], yticks=[])
    axes.spines[:].set_visible(False)
    marks = ((line, "reached"), (dots, "blind spot"), (text, "the pixel"), (faint, "later"))
    axes.figure.legend(
        handles=[Patch(color=tuple(colour), label=label) for colour, label in marks],
        loc="outside right upper",
        frameon=False,
        labelcolor=TEXT,
    )
