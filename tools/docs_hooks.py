"""Hooks of mkdocs, which run on each page.

Equations become MathML, which browsers draw without a script or a network. A notebook's links to
Markdown files become links to their pages, as mkdocs makes them of other pages.
"""

from __future__ import annotations

import html
import re
from typing import Any

from latex2mathml.converter import convert

_EQUATION = re.compile(
    r'<(?P<tag>span|div) class="arithmatex">\\[(\[](?P<tex>.*?)\\[)\]]</(?P=tag)>', re.DOTALL
)


def on_page_content(content: str, **_: Any) -> str:
    """The HTML of a page, changed."""

    def draw(found: re.Match[str]) -> str:
        display = "block" if found["tag"] == "div" else "inline"
        return str(convert(html.unescape(found["tex"]), display=display))

    return re.sub(r'href="(\w+)\.md"', r'href="../\1/"', _EQUATION.sub(draw, content))
