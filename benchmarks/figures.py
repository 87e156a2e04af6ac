"""The figure of benchmark results: speed-up of cached sampling against batch size."""

from __future__ import annotations

from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.ticker import NullLocator

from benchmarks.results import Result

# Ramachandran et al. (2017), cached against plain sampling of a PixelCNN++ on CIFAR-10, K40 GPU.
PUBLISHED = dict(zip((2**i for i in range(9)), (2, 4, 6, 10, 18, 33, 61, 109, 183), strict=True))
STYLES = ((1, "MNIST F40", "#1f6fb4"), (3, "CIFAR-10 F160", "#d9730d"))  # by colours of an image


def draw(results: list[Result], path: Path) -> bool:
    """Draw cached against plain sampling by batch size, with the published curve.

    Returns whether the results have two sizes, and so a figure.
    """
    cases = [r for r in results if (r["suite"], r["dtype"]) == ("sampler", "float32")]
    cases = [r for r in cases if "plain" in r["ratios"] and not r["case"].startswith("size-")]
    if len(cases) < 2:
        return False
    figure, axes = plt.subplots(figsize=(6.4, 4.2), dpi=130, layout="constrained")
    for channels, network, colour in STYLES:
        curve = [r for r in cases if r["shape"][1] == channels]
        points = sorted((r["shape"][0], r["ratios"]["plain"][0]) for r in curve)
        if points:
            label = f"dsmooth, {network}, CPU"
            axes.plot(*zip(*points, strict=True), "o-", color=colour, label=label)
    published = "Ramachandran et al. 2017, K40"
    axes.plot([*PUBLISHED], [*PUBLISHED.values()], "s--", color="#888888", label=published)
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
    axes.grid(True, which="major", color="#dddddd", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    figure.savefig(path)
    plt.close(figure)
    return True
