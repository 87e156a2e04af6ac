"""Images as PNG, one or a grid of them, and images that diverged."""

from __future__ import annotations

import io
import math
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from ..fields import check_number
from ..files import write_atomically
from . import to_bytes, to_float

BORDER = 96  # grey between the images of a grid


def show(
    x: Tensor | NDArray[np.generic] | list[Tensor], *, columns: int | None = None, zoom: int = 2
) -> Image.Image:
    """A picture of images x (B, C, H, W) in [-1, 1] or of bytes, which a notebook displays.

    x may be one image too, (C, H, W) or (H, W), or a list of images (C, H, W). columns: images per
    row, by default about the square root of B. zoom: pixels per pixel. Values outside [-1, 1] are
    clamped, and images that diverged to infinity are grey.
    Returns a Pillow image: `.save("x.png")` writes it. Raises ValueError for a batch that is empty
    or not images, and for floating point in [0, 1], which would be pale; TypeError for other
    numbers.
    """
    for name, value in (("columns", columns), ("zoom", zoom)):
        if value is not None:
            check_number(name, value)
    return _grid(_batch(x), columns, zoom)


def to_pil(x: Tensor | NDArray[np.generic] | list[Tensor]) -> list[Image.Image]:
    """A Pillow image of each of x, which is as `show` takes it. Raises as `show` does."""
    return pil_images(_batch(x))


def _batch(x: Tensor | NDArray[np.generic] | list[Tensor]) -> Tensor:
    """Images (B, C, H, W) in [-1, 1] from what `show` takes."""
    if isinstance(x, list):
        x = torch.stack([*map(torch.as_tensor, x)])
        x = x[:, None] if x.ndim == 3 else x
    x = torch.as_tensor(x)
    if x.dtype != torch.uint8 and not x.is_floating_point():
        raise TypeError(f"x must be uint8 or floating point, got {x.dtype}")
    x = x[None, None] if x.ndim == 2 else x[None] if x.ndim == 3 and x.shape[0] in (1, 3) else x
    if x.ndim != 4 or x.shape[0] < 1 or x.shape[1] not in (1, 3):
        raise ValueError(f"x must have shape (B, 1 or 3, H, W) with B >= 1, got {tuple(x.shape)}")
    if x.dtype == torch.uint8:
        return to_float(x)
    finite = x[x.isfinite()]
    if finite.numel() and 0 <= float(finite.min()) < float(finite.max()):
        scale, shown = ("[0, 255]", "x.byte()") if finite.max() > 2 else ("[0, 1]", "2 * x - 1")
        raise ValueError(
            f"x must lie in [-1, 1], got no value below 0: show({shown}) shows images in {scale}, "
            "show(dsmooth.to_bytes(x)) those that are as bright as that"
        )
    return x


def _grid(x: Tensor, columns: int | None, zoom: int) -> Image.Image:
    """A grid of images x (B, C, H, W), each with a border on every side; the last row may lack
    some."""
    columns = min(len(x), columns or math.isqrt(len(x) - 1) + 1)
    rows, width, height = -(-len(x) // columns), x.shape[3] + 1, x.shape[2] + 1
    cells, size = pil_images(x), (columns * width + 1, rows * height + 1)
    grid = Image.new(cells[0].mode, size, "#" + 3 * f"{BORDER:02x}")
    for i, cell in enumerate(cells):
        grid.paste(cell, (i % columns * width + 1, i // columns * height + 1))
    return grid.resize((size[0] * zoom, size[1] * zoom), Image.Resampling.NEAREST)


def pil_images(x: Tensor) -> list[Image.Image]:
    """A Pillow image of each of x (B, C, H, W) in [-1, 1].

    Values outside are clamped; images that diverged are plain grey.
    """
    x = x.detach().float().cpu()
    shown = torch.where(is_diverged(x)[:, None, None, None], 0.0, x)
    pixels = to_bytes(shown).permute(0, 2, 3, 1).numpy()
    return [Image.fromarray(row[:, :, 0] if row.shape[2] == 1 else row) for row in pixels]


def png(picture: Image.Image) -> bytes:
    """PNG bytes of a picture."""
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG")  # optimize=True: 8 times as long, 3 % smaller
    return buffer.getvalue()


def grid_png(x: Tensor, *, columns: int | None = None, zoom: int = 2) -> bytes:
    """PNG bytes of a grid of images x (B, C, H, W) in [-1, 1]."""
    return png(_grid(x, columns, zoom))


def save_grid(x: Tensor, path: Path, *, columns: int | None = None) -> None:
    """Write `grid_png` to `path`."""
    write_atomically(path, grid_png(x, columns=columns))


def is_diverged(x: Tensor) -> Tensor:
    """Whether each image of x (N, C, H, W) diverged, as with a hardly trained model: (N,) bool."""
    return ~x.isfinite().flatten(1).all(1)
