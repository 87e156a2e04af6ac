"""Pieces of a page: pictures that it carries inline, figures, paragraphs."""

from __future__ import annotations

import base64
import math
from collections.abc import Callable, Sequence
from html import escape

from torch import Tensor

from ..pictures import grid_png, visible

MIN_WIDTH = 600  # pixels of a grid


def grid(x: Tensor, columns: int) -> bytes:
    """A PNG grid, sharp on a dense screen, in which diverged images are plain grey."""
    zoom = max(2, math.ceil(MIN_WIDTH / (columns * x.shape[3])))
    return grid_png(visible(x), columns=columns, zoom=zoom)


def data_uri(png: bytes) -> str:
    """PNG bytes as a URI that carries them."""
    return "data:image/png;base64," + base64.b64encode(png).decode("ascii")


def figure(
    png: bytes, alt: str, title: str, text: str, dark_png: bytes | None = None, kind: str = ""
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


def plot_figure(plot: Callable[..., bytes], alt: str, title: str, text: str) -> str:
    """A figure of `plot`, which is called with dark=False and dark=True."""
    return figure(plot(dark=False), alt, title, text, plot(dark=True))


def side_by_side(figures: Sequence[str], kind: str = "curves") -> str:
    """Figures in columns where the page is wide enough."""
    return f'<div class="grid {kind}">{"".join(figures)}</div>' if figures else ""


def paragraph(text: str) -> str:
    """A paragraph, with `backquotes` as code."""
    parts = escape(text).split("`")
    return f"<p>{''.join(f'<code>{p}</code>' if i % 2 else p for i, p in enumerate(parts))}</p>"
