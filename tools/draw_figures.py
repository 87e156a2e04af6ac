"""Draw the figures of the documentation: python tools/draw_figures.py

Each function below is one figure, written as SVG into docs/figures/.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from html import escape
from pathlib import Path

FOLDER = Path(__file__).resolve().parents[1] / "docs" / "figures"
INK, GREY, PAPER = "#222222", "#8a8a8a", "#ffffff"
KNOWN, NOW, READ, NOTED = "#d9dde3", "#2f6db3", "#f2c14e", "#d9622b"
CELL = 22


class Drawing:
    """An SVG image that is filled shape by shape; coordinates are pixels from the top left."""

    def __init__(self, width: int, height: int, title: str) -> None:
        self.head = (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
            f'width="{width}" height="{height}" font-family="DejaVu Sans, Arial, sans-serif">\n'
            f"<title>{escape(title)}</title>"
        )
        self.shapes: list[str] = []
        self.rect(0, 0, width, height, PAPER)

    def rect(
        self, x: float, y: float, w: float, h: float, fill: str, edge: str = "none", round_: int = 0
    ) -> None:
        self.shapes.append(
            f'<rect x="{x:g}" y="{y:g}" width="{w:g}" height="{h:g}" rx="{round_}" '
            f'fill="{fill}" stroke="{edge}"/>'
        )

    def text(
        self,
        x: float,
        y: float,
        words: str,
        size: int = 13,
        anchor: str = "middle",
        colour: str = INK,
        weight: str = "normal",
    ) -> None:
        self.shapes.append(
            f'<text x="{x:g}" y="{y:g}" font-size="{size}" text-anchor="{anchor}" '
            f'font-weight="{weight}" fill="{colour}">{escape(words)}</text>'
        )

    def line(
        self, points: Sequence[tuple[float, float]], colour: str = INK, width: float = 1.5
    ) -> None:
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        self.shapes.append(
            f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="{width:g}"/>'
        )

    def arrow(self, x0: float, y0: float, x1: float, y1: float, colour: str = INK) -> None:
        """A straight arrow whose tip is (x1, y1)."""
        length = math.hypot(x1 - x0, y1 - y0)
        ux, uy = (x1 - x0) / length, (y1 - y0) / length
        bx, by = x1 - 9 * ux, y1 - 9 * uy
        self.line([(x0, y0), (bx, by)], colour)
        corners = ((x1, y1), (bx - 4 * uy, by + 4 * ux), (bx + 4 * uy, by - 4 * ux))
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in corners)
        self.shapes.append(f'<polygon points="{path}" fill="{colour}"/>')

    def dot(self, x: float, y: float, colour: str) -> None:
        self.shapes.append(f'<circle cx="{x:g}" cy="{y:g}" r="5" fill="{colour}"/>')

    def grid(self, x: float, y: float, n: int, fill: Callable[[int, int], str]) -> None:
        """n x n cells, the colour of each a function of its row and column."""
        for row in range(n):
            for column in range(n):
                at = x + column * CELL, y + row * CELL
                self.rect(*at, CELL, CELL, fill(row, column), GREY)

    def legend(self, x: float, y: float, entries: Sequence[tuple[str, str]], step: float) -> None:
        for i, (colour, words) in enumerate(entries):
            self.rect(x + i * step, y - 11, 14, 14, colour, GREY)
            self.text(x + i * step + 20, y + 1, words, 12, "start")

    def __str__(self) -> str:
        return "\n".join([self.head, *self.shapes, "</svg>"]) + "\n"


def two_step() -> Drawing:
    """Smoothing and two-step sampling in one dimension."""
    d = Drawing(860, 262, "Two-step sampling: the data, the noisy density, the denoised one")
    peaks = ((-0.75, 0.30), (-0.45, 0.12), (0.15, 0.22), (0.5, 0.26), (0.8, 0.10))
    narrow, sigma, x_tilde = 0.02, 0.3, 0.3

    def normal(t: float, s: float) -> float:
        return math.exp(-0.5 * (t / s) ** 2) / s

    def data(t: float) -> float:
        return sum(w * normal(t - m, narrow) for m, w in peaks)

    def noisy(t: float) -> float:
        return sum(w * normal(t - m, math.hypot(narrow, sigma)) for m, w in peaks)

    def denoised(t: float) -> float:
        return data(t) * normal(x_tilde - t, sigma)

    panels = (
        ("data  p(x)", "steep peaks", data, GREY),
        ("noisy model  p(x~)", "smooth: easy to learn", noisy, NOW),
        ("denoiser  p(x | x~)", "peaks again, near x~", denoised, NOTED),
    )
    for i, (name, remark, density, colour) in enumerate(panels):
        left = 20 + i * 295
        grid = [-1.5 + 3 * j / 400 for j in range(401)]
        top = max(map(density, grid))
        points = [(left + (t + 1.5) / 3 * 230, 195 - 125 * density(t) / top) for t in grid]
        d.text(left + 115, 28, name, 15, weight="bold")
        d.text(left + 115, 48, remark, 12, colour=GREY)
        d.line([(left, 195), (left + 230, 195)], GREY, 1)
        d.line(points, colour, 2)
    at = 315 + (x_tilde + 1.5) / 3 * 230
    d.dot(at, 195, NOW)
    d.text(at, 218, "1. draw x~", 12)
    at = 610 + (0.15 + 1.5) / 3 * 230
    d.dot(at, 195, NOTED)
    d.text(at, 218, "2. draw x", 12)
    d.arrow(250, 130, 313, 130)
    d.text(281, 120, "+ noise", 12)
    d.arrow(545, 130, 608, 130)
    d.text(576, 120, "given x~", 12)
    d.text(430, 250, "Training goes by the first arrow, sampling starts at the middle.", 12)
    return d


def streams() -> Drawing:
    """Pixels that the streams u and ul see."""
    d = Drawing(560, 262, "What the two streams of PixelCNN++ see at one pixel")
    row, column = 4, 4

    def of_u(r: int, c: int) -> str:
        return NOTED if (r, c) == (row, column) else NOW if r < row else PAPER

    def of_ul(r: int, c: int) -> str:
        return READ if r == row and c < column else of_u(r, c)

    for x, name, fill in ((50, "stream u", of_u), (310, "stream ul", of_ul)):
        d.text(x + 4 * CELL, 24, name, 15, weight="bold")
        d.grid(x, 38, 8, fill)
    d.arrow(236, 38 + 4 * CELL, 300, 38 + 4 * CELL)
    entries = ((NOTED, "the pixel"), (NOW, "rows above"), (READ, "left in its row"))
    d.legend(70, 244, entries, 150)
    return d


def atoms() -> Drawing:
    """The masses of 256 levels under two logistics and two atoms, on a logarithmic scale."""
    d = Drawing(700, 300, "A mixture of two logistics and two atoms over the 256 byte levels")
    components = ((0.10, 130.0, 40.0), (0.05, 240.0, 8.0))  # weight, mean and scale in levels
    weights = {0: 0.81, 253: 0.04}
    left, bottom, height, decades = 70, 236, 190, 5

    def distribution(n: float, mean: float, scale: float) -> float:
        return 1 / (1 + math.exp(-(n - mean) / scale))

    def mass(n: int, mean: float, scale: float) -> float:
        below = 0.0 if n == 0 else distribution(n - 0.5, mean, scale)
        above = 1.0 if n == 255 else distribution(n + 0.5, mean, scale)
        return above - below

    def tall(p: float) -> float:
        return height * max(0.0, 1 + math.log10(p) / decades)

    for power in range(decades + 1):
        y = bottom - tall(10.0**-power) if power < decades else bottom
        d.line([(left - 4, y), (left + 600, y)], KNOWN, 1)
        d.text(left - 8, y + 4, "1" if power == 0 else f"1e-{power}", 11, "end")
    for n in range(256):
        p = sum(w * mass(n, mean, scale) for w, mean, scale in components)
        x = left + n * 2.34
        if n in weights:
            top = tall(p + weights[n])
            d.rect(x - 1, bottom - top, 4, top, NOTED)
        d.rect(x, bottom - tall(p), 1.9, tall(p), NOW)
    for n in (0, 64, 128, 192, 253):
        d.text(left + n * 2.34 + 1, bottom + 18, str(n), 11)
    d.text(left + 300, bottom + 34, "byte level", 12)
    d.text(left + 300, 24, "probability of a level", 15, weight="bold")
    d.legend(200, 290, ((NOW, "masses of two logistics"), (NOTED, "atoms at 0 and 253")), 190)
    return d


def sampling() -> Drawing:
    """Activations that plain and cached sampling compute for one pixel."""
    d = Drawing(860, 300, "What is computed for one pixel, by plain and by cached sampling")
    row, column = 4, 4

    def known(r: int, c: int) -> bool:
        return r < row or (r == row and c < column)

    def plain(r: int, c: int) -> str:
        return NOW

    def new_row(r: int, c: int) -> str:
        return NOW if r == row else READ if r in (row - 1, row - 2) else KNOWN if r < row else PAPER

    def new_pixel(r: int, c: int) -> str:
        if (r, c) == (row, column):
            return NOW
        near = r == row and c in (column - 1, column - 2)
        return READ if near else KNOWN if known(r, c) else PAPER

    panels = (
        ("plain", "for every pixel:", "the whole image again", plain),
        (
            "cached: a row begins",
            "once per row: all that depends",
            "on the rows above alone",
            new_row,
        ),
        (
            "cached: a pixel",
            "for every pixel: its own column",
            "of activations, then draw it",
            new_pixel,
        ),
    )
    for i, (name, first, second, fill) in enumerate(panels):
        x = 50 + i * 290
        d.text(x + 4 * CELL, 24, name, 15, weight="bold")
        d.grid(x, 38, 8, fill)
        d.rect(x + column * CELL, 38 + row * CELL, CELL, CELL, "none", NOTED)
        d.rect(x + column * CELL + 1, 39 + row * CELL, CELL - 2, CELL - 2, "none", NOTED)
        d.text(x + 4 * CELL, 232, first, 12)
        d.text(x + 4 * CELL, 248, second, 12)
    entries = (
        (NOW, "computed now"),
        (READ, "read from a cache"),
        (KNOWN, "known"),
        (PAPER, "not yet drawn"),
    )
    d.legend(130, 284, entries, 160)
    return d


def gated_resnet() -> Drawing:
    """The gated block, step by step: what eager PyTorch writes, and what the kernels do."""
    d = Drawing(900, 250, "The gated block: what each implementation writes to memory")
    steps = (
        "concat_elu",
        "conv 1",
        "+ nin(skip)",
        "concat_elu",
        "dropout",
        "conv 2",
        "gate",
        "+ x",
    )
    width, gap, left = 80, 14, 70
    rows = (
        (70, "eager PyTorch: every step writes its result", set(range(8))),
        (165, "Triton kernels: what is multiplied, h and y are written", {0, 2, 4, 7}),
    )
    for y, name, stored in rows:
        d.text(left, y - 22, name, 14, "start", weight="bold")
        d.text(left - 24, y + 22, "x", 15)
        for i, step in enumerate(steps):
            x = left + i * (width + gap)
            d.rect(x, y, width, 34, PAPER if len(stored) == 8 else KNOWN, GREY, 5)
            d.text(x + width / 2, y + 21, step, 12)
            if i == 0:
                d.arrow(x - 16, y + 17, x, y + 17)
            end = x + width
            d.line([(end, y + 17), (end + gap, y + 17)], INK)
            if i in stored:
                d.dot(end + gap / 2, y + 17, NOTED)
        d.text(left + 8 * (width + gap) + 10, y + 22, "y", 15)
    kernels = ((0, 0, "expand"), (1, 2, "hidden"), (3, 4, "expand"), (5, 7, "gate"))
    for first, last, name in kernels:
        x0, x1 = left + first * (width + gap), left + last * (width + gap) + width
        d.line([(x0, 208), (x0, 214), (x1, 214), (x1, 208)], NOW, 1.5)
        d.text((x0 + x1) / 2, 232, name, 12, colour=NOW)
    d.dot(660, 43, NOTED)
    d.text(672, 48, "a tensor in memory", 12, "start")
    return d


FIGURES = {
    "two_step.svg": two_step,
    "streams.svg": streams,
    "atoms.svg": atoms,
    "sampling.svg": sampling,
    "gated_resnet.svg": gated_resnet,
}


def main() -> None:
    for name, draw in FIGURES.items():
        (FOLDER / name).write_text(str(draw()))
        print(f"docs/figures/{name}")


if __name__ == "__main__":
    main()
