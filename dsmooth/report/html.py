"""The page of report.html, and its pieces: pictures that it carries inline, figures, paragraphs."""

from __future__ import annotations

import base64
import math
from collections.abc import Callable, Sequence
from html import escape
from string import Template

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


PAGE = Template("""\
<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>$title</title>
<link rel="icon" href="data:,">
<style>
:root {
  color-scheme: light dark;
  --page: #fbfbfa; --card: #ffffff; --text: #1f2328; --quiet: #57606a; --line: #d8dce1;
}
@media screen and (prefers-color-scheme: dark) {
  :root { --page: #14171b; --card: #1c2026; --text: #e4e7eb; --quiet: #a3abb5; --line: #343b44; }
}
* { box-sizing: border-box; }
body {
  margin: 0 auto; padding: 1.5rem 1rem 3rem; max-width: 68rem;
  background: var(--page); color: var(--text);
  font: 1rem/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif;
  overflow-wrap: break-word;
}
h1 { font-size: 1.7rem; line-height: 1.2; margin: 0 0 .5rem; }
h2 { font-size: 1.2rem; margin: 2.2rem 0 .8rem; }
p { max-width: 46rem; margin: .6rem 0; }
.lead { font-size: 1.1rem; }
nav { display: flex; flex-wrap: wrap; gap: .2rem 1.2rem; margin: 1rem 0; font-size: .92rem; }
a { color: inherit; text-underline-offset: .15em; text-decoration-color: var(--quiet); }
.grid { display: grid; gap: 1rem; }
.samples { grid-template-columns: repeat(auto-fit, minmax(min(100%, 14rem), 1fr)); }
.curves { grid-template-columns: repeat(auto-fit, minmax(min(100%, 15rem), 1fr)); }
.curves figure { max-width: 24rem; }
figure {
  margin: 0; padding: .75rem; background: var(--card);
  border: 1px solid var(--line); border-radius: .5rem;
}
figure img { display: block; width: 100%; height: auto; border-radius: .25rem; }
figcaption { margin-top: .6rem; font-size: .9rem; line-height: 1.45; color: var(--quiet); }
figcaption strong { display: block; color: var(--text); }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: .92rem; }
th, td {
  padding: .3rem .9rem .3rem 0; text-align: left; vertical-align: top;
  border-bottom: 1px solid var(--line);
}
tbody th { font-weight: normal; }
small { color: var(--quiet); font-weight: normal; }
.total th, .total td { font-weight: 600; }
.number { text-align: right; white-space: nowrap; font-variant-numeric: tabular-nums; }
code {
  padding: .05em .3em; background: var(--line); border-radius: .2em;
  font: .9em ui-monospace, "DejaVu Sans Mono", monospace;
}
footer { margin-top: 2.5rem; color: var(--quiet); font-size: .85rem; }
@media (max-width: 30rem) {
  body { padding: 1rem .75rem 2rem; }
  .settings { font-size: .78rem; }
  .settings th, .settings td { padding-right: .5rem; }
}
@media print {
  @page { margin: 15mm; }
  body { max-width: none; padding: 0; font-size: 10pt; background: #fff; color: #000; }
  nav { display: none; }
  .grid { gap: 3mm; }
  .samples { grid-template-columns: repeat(4, 1fr); }
  .curves { grid-template-columns: repeat(3, 1fr); }
  figure { padding: 2mm; }
  figcaption { font-size: 8pt; }
  .wide img { max-width: 130mm; }
  h2 { margin: 6mm 0 3mm; }
  table { font-size: 8.5pt; }
  th, td { padding: .6mm 4mm .6mm 0; }
  figure, tr, section:last-of-type { break-inside: avoid; }
  h2 { break-after: avoid; }
}
</style>
</head>
<body>
<header>
<h1>$title</h1>
<p class="lead">$lead</p>
$introduction
<nav aria-label="Contents">
$contents
</nav>
</header>
<main>
$sections
</main>
<footer>Made by dsmooth $version. The numbers are in results.json beside this file.</footer>
</body>
</html>
""")
