"""report.html: one file, with pictures inline, without script or network."""

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

from ..files import write_atomically
from ..pictures import grid_png
from ..tables import Table
from ..text import escape_control, render

TEMPLATE = Path(__file__).with_name("page.html")
MIN_WIDTH = 600  # pixels of a grid


@dataclass(frozen=True)
class Figure:
    """A picture as the address of its data, with its description, title and caption."""

    source: str
    alt: str
    title: str
    text: str


@dataclass(frozen=True)
class Block:
    """A paragraph, in which `backquotes` mark code; figures, laid out by `layout`; or a table."""

    text: str = ""
    figures: Sequence[Figure] = ()
    layout: Literal["samples", "curves", "wide"] = "curves"
    table: Table | None = None


@dataclass(frozen=True)
class Section:
    """A titled part of the page."""

    title: str
    blocks: Sequence[Block]


def picture(png: bytes) -> str:
    """The address of a PNG's own data."""
    return f"data:image/png;base64,{base64.b64encode(png).decode()}"


def grid(*rows: Tensor) -> bytes:
    """A grid as PNG, sharp on a dense screen: one batch in a square, or several a row each."""
    x = torch.cat(rows)
    columns = len(rows[0]) if len(rows) > 1 else math.isqrt(len(x) - 1) + 1
    return grid_png(x, columns=columns, zoom=max(2, math.ceil(MIN_WIDTH / (columns * x.shape[3]))))


def write_page(
    path: Path, title: str, lead: str, intro: str, sections: Sequence[Section], version: str
) -> None:
    """Write the page to `path`. version: of dsmooth."""
    values = {"title": title, "lead": lead, "intro": intro, "version": version}
    text = render(TEMPLATE, **values, sections=sections)
    # p(x | x~) must not break at the bar: after one, only a word joiner forbids it.
    text = text.replace(" | ", "\u00a0|\u2060\u00a0")
    text = re.sub(r"(?<![\w-])-(?=\d)", "\u2212", text)  # the minus sign of a number
    write_atomically(path, escape_control(text).encode())
