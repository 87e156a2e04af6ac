"""Figures of benchmark results: speed-up against batch size, time against image size."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.ticker import NullLocator

from benchmarks.results import Result

# Ramachandran et al. (2017), cached against plain sampling of a PixelCNN++ on CIFAR-10, K40 GPU.
PUBLISHED = dict(zip((2**i for i in range(9)), (2, 4, 6, 10, 18, 33, 61, 109, 183), strict=True))
BLUE, ORANGE, GREY = "#1f6fb4", "#d9730d", "#888888"


def draw_all(results: list[Result], folder: Path) -> Iterator[Path]:
    """Draw the figures that these results are enough for; yields their paths."""
    for name, draw in FIGURES.items():
        figure, axes = plt.subplots(figsize=(6.4, 4.2), dpi=130, layout="constrained")
        if draw(axes, results):
            axes.grid(True, which="major", color="#dddddd", linewidth=0.6)
            axes.set_axisbelow(True)
            axes.spines[["top", "right"]].set_visible(False)
            figure.savefig(folder / f"{name}.png")
            yield folder / f"{name}.png"
        plt.close(figure)


def speedup(axes: plt.Axes, results: list[Result]) -> bool:
    """Cached against plain sampling, by batch size, beside the published curve."""
    cases = [r for r in results if (r["suite"], r["dtype"]) == ("sampler", "float32")]
    cases = [r for r in cases if "plain" in r["ratios"] and not r["case"].startswith("size-")]
    for channels, network, colour in ((1, "MNIST F40", BLUE), (3, "CIFAR-10 F160", ORANGE)):
        curve = [r for r in cases if r["shape"][1] == channels]
        points = sorted((r["shape"][0], r["ratios"]["plain"][0]) for r in curve)
        if points:
            label = f"dsmooth, {network}, CPU"
            axes.plot(*zip(*points, strict=True), "o-", color=colour, label=label)
    label = "Ramachandran et al. 2017, K40"
    axes.plot(list(PUBLISHED), list(PUBLISHED.values()), "s--", color=GREY, label=label)
    axes.set(
        xscale="log",
        yscale="log",
        xlabel="batch size",
        ylabel="times faster than one forward per pixel",
        title="Cached sampling against plain sampling",
        xticks=list(PUBLISHED),
    )
    axes.xaxis.set_major_formatter("{x:.0f}")
    axes.xaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter("{x:,.0f}")
    axes.legend(frameon=False)
    return len(cases) > 1


def image_size(axes: plt.Axes, results: list[Result]) -> bool:
    """Seconds per image against its pixels, beside a line through the largest."""
    cases = [r for r in results if r["suite"] == "sampler" and r["case"].startswith("size-")]
    points = sorted((r["shape"][2] * r["shape"][3], 1 / r["img_per_s"]) for r in cases)
    if len(points) < 2:
        return False
    pixels, seconds = (list(values) for values in zip(*points, strict=True))
    axes.plot(pixels, seconds, "o", color=BLUE, label="dsmooth, F40, batch 16")
    end = pixels[-1]
    axes.plot([0, end], [0, seconds[-1]], "-", color=GREY, linewidth=1, label="proportional to H W")
    axes.set(
        xlabel="pixels of an image",
        ylabel="seconds per image",
        title="Time is linear in the number of pixels",
        xlim=(0, None),
        ylim=(0, None),
    )
    axes.legend(frameon=False)
    return True


FIGURES = {"speedup": speedup, "image_size": image_size}
