"""Pictures of a report: grids and curves as PNG, and the HTML that carries them inline."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

import torch
from torch import Tensor

from ..images import grid_png

MIN_WIDTH = 600  # pixels of a grid


def grid(x: Tensor, columns: int) -> bytes:
    """A PNG grid, sharp on a dense screen, in which diverged images are plain grey."""
    zoom = max(2, math.ceil(MIN_WIDTH / (columns * x.shape[3])))
    return grid_png(visible(x), columns=columns, zoom=zoom)


def visible(x: Tensor) -> Tensor:
    """x (N, C, H, W) with images that diverged to infinity replaced by plain grey ones."""
    return torch.where(is_diverged(x)[:, None, None, None], 0.0, x)


def is_diverged(x: Tensor) -> Tensor:
    """Which images of x (N, C, H, W) diverged, as those of a hardly trained model can: (N,)."""
    return ~x.isfinite().flatten(1).all(1)


def data_uri(png: bytes) -> str:
    """PNG bytes as a URI that carries them."""
    return "data:image/png;base64," + base64.b64encode(png).decode("ascii")


def figure(
    png: bytes,
    alt: str,
    title: str,
    text: str,
    dark_png: bytes | None = None,
    kind: str = "",
) -> str:
    """An HTML figure of class `kind`; `dark_png` takes the picture's place in dark mode."""
    image = f'<img src="{data_uri(png)}" alt="{escape(alt)}">'
    if dark_png is not None:
        dark = '<source media="screen and (prefers-color-scheme: dark)"'
        image = f'<picture>{dark} srcset="{data_uri(dark_png)}">{image}</picture>'
    style = f' class="{kind}"' if kind else ""
    return (
        f"<figure{style}>{image}<figcaption><strong>{escape(title)}</strong> {escape(text)}"
        "</figcaption></figure>"
    )


def curve_png(entries: Sequence[Mapping[str, Any]], *, dark: bool) -> bytes:
    """Loss in bits/dim against images seen, as PNG; held-out scores as dots."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import EngFormatter

    steps = [(e["images"], e["bits_per_dim"]) for e in entries if e["event"] == "step"]
    scores = [(e["images"], e["bits_per_dim"]) for e in entries if e["event"] == "evaluation"]
    text, line, dots = ("#d6d9df", "#7fb2ff", "#ffb454") if dark else ("#333", "#2f6fd0", "#b34700")

    canvas = Figure(figsize=(3.6, 2.7), dpi=220, layout="constrained")
    axes = canvas.add_subplot()
    means = running_mean(steps)
    if steps:
        axes.plot(*zip(*steps, strict=True), color=line, linewidth=0.6, alpha=0.3)
        axes.plot(*zip(*means, strict=True), color=line, linewidth=1.4, label="training")
    if scores:
        dots_at = list(zip(*scores, strict=True))
        axes.plot(*dots_at, "o", color=dots, markersize=4, zorder=3, label="held out")
    # The first steps start so high that they would flatten the rest.
    values = sorted(v for _, v in means + scores)
    if values:
        low, high = values[0], values[min(len(values) - 1, int(0.9 * len(values)))]
        margin = 0.15 * (high - low) + 0.01
        axes.set_ylim(low - margin, high + margin)
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.set_xlabel("images seen", color=text)
    axes.set_ylabel("bits/dim", color=text)
    axes.tick_params(colors=text)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(text)
    if steps or scores:
        axes.legend(frameon=False, labelcolor=text)
    buffer = io.BytesIO()
    canvas.savefig(buffer, format="png", transparent=True, metadata={"Software": None})
    return buffer.getvalue()


def running_mean(points: Sequence[tuple[int, float]]) -> list[tuple[int, float]]:
    """Each value replaced by the mean of the 2 % of points around it."""
    reach = len(points) // 100
    smooth = []
    for i, (images, _) in enumerate(points):
        near = [value for _, value in points[max(0, i - reach) : i + reach + 1]]
        smooth.append((images, sum(near) / len(near)))
    return smooth
