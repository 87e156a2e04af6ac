"""The page report.html: one file, with pictures inline, without script or network."""

from __future__ import annotations

import base64
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from .._extension import __version__
from ..data.pictures import grid_png
from ..files import write_atomically
from ..text import Table, escape_control, render

TEMPLATE = Path(__file__).with_name("page.html")
MIN_WIDTH = 600  # pixels of a grid


@dataclass(frozen=True)
class Figure:
    """A picture as PNG, with its title and caption."""

    png: bytes
    title: str
    text: str

    @property
    def source(self) -> str:
        """The address of the picture's own data."""
        return f"data:image/png;base64,{base64.b64encode(self.png).decode()}"


@dataclass(frozen=True)
class Section:
    """Figures, tables and the words below them, in which `backquotes` mark code."""

    title: str
    text: str
    figures: Sequence[Figure] = ()
    tables: Sequence[Table] = ()
    layout: Literal["samples", "plots", "wide"] = "plots"


def write_page(path: Path, title: str, intro: str, sections: Sequence[Section]) -> None:
    """Write the sections that have figures or tables, with a list of contents."""
    kept = [section for section in sections if section.figures or section.tables]
    page = render(TEMPLATE, title=title, intro=intro, sections=kept, version=__version__)
    # p(x | x~) must not break at the bar: after one, only a word joiner forbids it.
    page = page.replace(" | ", "\u00a0|\u2060\u00a0")
    page = re.sub(r"(?<![\w-])-(?=\d)", "\u2212", page)  # the minus sign of a number
    write_atomically(path, escape_control(page).encode())


def grid(*rows: Tensor) -> bytes:
    """A grid as PNG, sharp on a dense screen: one batch in a square, or several a row each."""
    x = torch.cat(rows)
    columns = len(rows[0]) if len(rows) > 1 else math.isqrt(len(x) - 1) + 1
    return grid_png(x, columns=columns, zoom=max(2, math.ceil(MIN_WIDTH / (columns * x.shape[3]))))
