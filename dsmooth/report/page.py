"""The building blocks of report.html: one file, with pictures inline, without script or network."""

from __future__ import annotations

import base64
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from ..pictures import grid_png
from ..tables import Table

MIN_WIDTH = 600  # pixels of a grid


@dataclass(frozen=True)
class Figure:
    """A picture as PNG, with its description, title and caption."""

    png: bytes
    alt: str
    title: str
    text: str

    @property
    def source(self) -> str:
        """The address of the picture's own data."""
        return f"data:image/png;base64,{base64.b64encode(self.png).decode()}"


@dataclass(frozen=True)
class Block:
    """A paragraph, in which `backquotes` mark code; figures, laid out by `layout`; or a table."""

    text: str = ""
    figures: Sequence[Figure] = ()
    layout: Literal["samples", "curves", "wide"] = "curves"
    table: Table | None = None


def grid(*rows: Tensor) -> bytes:
    """A grid as PNG, sharp on a dense screen: one batch in a square, or several a row each."""
    x = torch.cat(rows)
    columns = len(rows[0]) if len(rows) > 1 else math.isqrt(len(x) - 1) + 1
    return grid_png(x, columns=columns, zoom=max(2, math.ceil(MIN_WIDTH / (columns * x.shape[3]))))
