"""Contents of a report, and its page, which page.html makes of them: a template of Jinja2."""

from __future__ import annotations

import base64
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from torch import Tensor

from ..pictures import grid_png, visible
from ..tables import Table

MIN_WIDTH = 600  # pixels of a grid


@dataclass(frozen=True)
class Figure:
    """A picture as PNG with its caption; `dark` takes its place in dark mode."""

    png: bytes
    alt: str
    title: str
    text: str
    dark: bytes | None = None
    wide: bool = False


@dataclass(frozen=True)
class Row:
    """Figures side by side where the page is wide enough."""

    figures: Sequence[Figure]
    kind: Literal["curves", "samples"] = "curves"


# Words are a paragraph, with `backquotes` as code.
Section: TypeAlias = Sequence[str | Figure | Row | Table]


def grid(x: Tensor, columns: int) -> bytes:
    """A PNG grid, sharp on a dense screen, in which diverged images are plain grey."""
    zoom = max(2, math.ceil(MIN_WIDTH / (columns * x.shape[3])))
    return grid_png(visible(x), columns=columns, zoom=zoom)


def plot_figure(plot: Callable[..., bytes], alt: str, title: str, text: str) -> Figure:
    """A figure of `plot`, which is called with dark=False and dark=True."""
    return Figure(plot(dark=False), alt, title, text, plot(dark=True))


def data_uri(png: bytes) -> str:
    """PNG bytes as a URI that carries them."""
    return "data:image/png;base64," + base64.b64encode(png).decode("ascii")


def render_page(sections: Mapping[str, Section], **words: str) -> str:
    """The page, in which no words are markup. sections: by their titles; empty ones are left out.

    words: title, lead, introduction and version.
    """
    pages = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined
    )
    pages.filters["data_uri"] = data_uri
    present = {title: blocks for title, blocks in sections.items() if blocks}
    page = pages.get_template("page.html").render(sections=present, **words)
    # p(x | x~) must not break at the bar: after one, only a word joiner forbids it.
    return page.replace(" | ", "\u00a0|\u2060\u00a0")
