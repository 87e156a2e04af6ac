"""Grids of images as PNG, and images that diverged."""

from __future__ import annotations

import io
import math
from pathlib import Path

import torch
from torch import Tensor

from .data import to_bytes
from .files import write_atomically


def grid_png(x: Tensor, *, columns: int | None = None, zoom: int = 2) -> bytes:
    """PNG bytes of a grid of images x (B, C, H, W) in [-1, 1]; values outside are clamped.

    columns: images per row, by default about the square root of B. zoom: pixels per pixel.
    Raises ValueError for a batch that is empty or not images.
    """
    from torchvision.transforms.functional import to_pil_image
    from torchvision.utils import make_grid

    if x.ndim != 4 or x.shape[0] < 1 or x.shape[1] not in (1, 3):
        raise ValueError(f"x must have shape (B, 1 or 3, H, W) with B >= 1, got {tuple(x.shape)}")
    pixels = to_bytes(x.detach().float().cpu())
    pixels = pixels.repeat_interleave(zoom, dim=2).repeat_interleave(zoom, dim=3)
    columns = columns or math.isqrt(x.shape[0] - 1) + 1
    picture = to_pil_image(make_grid(pixels, nrow=columns, padding=zoom, pad_value=96))
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG", optimize=True)
    return buffer.getvalue()


def save_grid(x: Tensor, path: Path) -> None:
    """Write `grid_png` to `path`."""
    write_atomically(path, grid_png(x))


def visible(x: Tensor) -> Tensor:
    """x (N, C, H, W) with images that diverged to infinity replaced by plain grey ones."""
    return torch.where(is_diverged(x)[:, None, None, None], 0.0, x)


def is_diverged(x: Tensor) -> Tensor:
    """Which images of x (N, C, H, W) diverged, as those of a hardly trained model can: (N,)."""
    return ~x.isfinite().flatten(1).all(1)
