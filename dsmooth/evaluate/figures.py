"""Grids of images that may have diverged, and the HTML that carries pictures inline."""

from __future__ import annotations

import base64
import math
from html import escape

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
