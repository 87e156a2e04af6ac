"""Plots of the report, as PNG."""

from __future__ import annotations

import io
from collections.abc import Mapping

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap, ListedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from ..evaluate.probe import PIXELS
from ..evaluate.receptive_field import causal
from ..results import BlockScores, ReceptiveFields

TEXT, LINE, DOTS, THIRD = "#333333", "#2f6fd0", "#b34700", "#1e7d4f"
QUIET, PALE, FAINT = "#6b7480", "#a8c2e4", "#eceef1"


def new_plot() -> tuple[Figure, Axes]:
    """An empty plot, and its axes."""
    figure = Figure(figsize=(3.6, 2.7), dpi=220, layout="constrained")
    axes = figure.add_subplot()
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def figure_png(figure: Figure) -> bytes:
    """The plot as PNG, with the names of its lines above: the same bytes for the same content."""
    if figure.axes[0].get_legend_handles_labels()[0]:
        figure.legend(loc="outside upper center", ncols=2, frameon=False)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()


def probe_png(accuracy: Mapping[str, BlockScores], name: str) -> bytes:
    """Accuracy of the probe after each block of network `name`, of all blocks together, and of its
    controls. Bars are standard errors."""
    figure, axes = new_plot()
    networks = (
        (name, "trained", "o", LINE),
        ("plain", "plain model", "^", THIRD),
        (f"untrained-{name}", "untrained", "s", QUIET),
    )
    for network, label, marker, colour in networks:
        if scores := accuracy.get(network):
            axes.errorbar(
                [*scores],
                [100 * score.accuracy for score in scores.values()],
                [100 * score.error for score in scores.values()],
                fmt=marker,
                color=colour,
                label=label,
                markersize=4,
                capsize=2,
            )
    height = 100 * accuracy[PIXELS][PIXELS].accuracy
    axes.axhline(height, color=DOTS, linewidth=1, linestyle=":", label="pixels")
    axes.set(xlabel="after block", ylabel="test accuracy, %")
    axes.tick_params(axis="x", labelsize="small", rotation=30)
    return figure_png(figure)


def receptive_png(fields: ReceptiveFields, name: str) -> bytes:
    """The pixels that the marked one of network `name` depends on, and its blind spot.

    The shade is the logarithm of the gradient.
    """
    figure, axes = new_plot()
    influence = np.array(fields.networks[name].influence)
    row, column = fields.pixel
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
    )
    return figure_png(figure)
