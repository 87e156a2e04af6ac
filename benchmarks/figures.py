"""Figures of benchmark results: speed-up against batch size, roofline, time against image size."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.ticker import NullFormatter, NullLocator, PercentFormatter

from benchmarks.results import Result

# Ramachandran et al. (2017), cached against plain sampling of a PixelCNN++ on CIFAR-10, K40 GPU.
PUBLISHED = dict(zip((2**i for i in range(9)), (2, 4, 6, 10, 18, 33, 61, 109, 183), strict=True))
INK, BLUE, ORANGE, GREY = "#222222", "#1f6fb4", "#d9730d", "#888888"


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
    curves: dict[str, dict[int, float]] = {}
    for result in results:
        if (result["suite"], result["dtype"]) == ("sampler", "float32") and "plain" in result[
            "ratios"
        ]:
            network = "MNIST F40" if result["shape"][1] == 1 else "CIFAR-10 F160"
            curves.setdefault(network, {})[result["shape"][0]] = result["ratios"]["plain"][0]
    if not any(len(curve) > 1 for curve in curves.values()):
        return False
    for (name, curve), colour in zip(
        sorted(curves.items(), reverse=True), (BLUE, ORANGE), strict=False
    ):
        batches = sorted(curve)
        axes.plot(
            batches, [curve[b] for b in batches], "o-", color=colour, label=f"dsmooth, {name}, CPU"
        )
    axes.plot(
        list(PUBLISHED),
        list(PUBLISHED.values()),
        "s--",
        color=GREY,
        label="Ramachandran et al. 2017, K40",
    )
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
    return True


def roofline(axes: plt.Axes, results: list[Result]) -> bool:
    """Arithmetic rate against arithmetic intensity, both in units of the machine as measured.

    Under the roof min(1, x) cases with other dtypes and thread counts can stand side by side.
    """
    cases = [r for r in results if r["gflop_per_s"] and r["gb_per_s"]]
    if not cases:
        return False
    reach = [1e-1, 1e1]
    for suite, colour in (("sampler", BLUE), ("gated_resnet", ORANGE)):
        for dtype, marker in (("float32", "o"), ("bfloat16", "^")):
            points = []
            for r in cases:
                rates = dict(map(tuple, r["limits"].values()))
                if (r["suite"], r["dtype"]) == (suite, dtype) and len(rates) == 2:
                    balance = rates["flops"] / rates["bytes"]
                    points.append(
                        (r["flops"] / r["bytes"] / balance, 1e9 * r["gflop_per_s"] / rates["flops"])
                    )
            if points:
                label = f"{suite.replace('_', ' ')}, {dtype}"
                axes.plot(*zip(*points, strict=True), marker, color=colour, label=label)
                reach = [
                    min(reach[0], *(x for x, _ in points)),
                    max(reach[1], *(x for x, _ in points)),
                ]
    axes.plot([reach[0], 1, reach[1]], [reach[0], 1, 1], color=INK, linewidth=1)
    axes.set(
        xscale="log",
        yscale="log",
        xlabel="FLOP per byte, over torch.mm's FLOP/s per byte/s of memory",
        ylabel="share of torch.mm",
        title="Roofline",
    )
    axes.yaxis.set_major_formatter(PercentFormatter(1))
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.legend(frameon=False, loc="lower right")
    return True


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


FIGURES = {"speedup": speedup, "roofline": roofline, "image_size": image_size}
