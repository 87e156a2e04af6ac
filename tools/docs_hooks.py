"""Hooks of mkdocs, which run on each page.

Equations become MathML, which browsers draw without a script or a network. A notebook's links to
Markdown files become links to their pages, as mkdocs makes them of other pages. An option of a
command is not broken after its dashes. The foot of a page says the version. With the environment
variable DSMOOTH_REPOSITORY, an address, pages link to it and to their own source.
"""

from __future__ import annotations

import html
import os
import re
from pathlib import Path
from typing import Any

from latex2mathml.converter import convert

_PACKAGE = Path(__file__).parents[1] / "dsmooth"
_EQUATION = re.compile(
    r'<(?P<tag>span|div) class="arithmatex">\\[(\[](?P<tex>.*?)\\[)\]]</(?P=tag)>', re.DOTALL
)
# As TeX sets them: a minus after a parenthesis, a comma or a relation is a sign, and the name of a
# function keeps off what follows without a parenthesis, but not more.
_SPACING = (
    (r"(<mo[^>]*>(?:\[|&#x000(?:28|2C|3C|3D|3E);)</mo><mo)(>&#x02212;)", r'\1 form="prefix"\2'),
    (r"<mo>(max|min)</mo>", r"<mi>\1</mi>"),
    (
        r"((?<!<msub>)<mi>(?:log|ln|exp)</mi>|log</mi><mn>2</mn></msub>)(?=<(?!mo[ >]|/))",
        r'\1<mspace width="0.17em"/>',
    ),
)


def on_config(config: Any, **_: Any) -> Any:
    """The version, and the repository where one is named."""
    version = re.search(r'__version__ = "(.+)"', (_PACKAGE / "_version.py").read_text())
    assert version is not None
    config.copyright = f"dsmooth {version[1]}"
    config.repo_url = os.environ.get("DSMOOTH_REPOSITORY") or None
    if config.repo_url:
        config.repo_name = config.repo_url.rstrip("/").rpartition("/")[2]
        config.edit_uri = "edit/main/docs/"
        config.theme["features"] = [*config.theme["features"], "content.action.edit"]
    return config


def on_page_content(content: str, **_: Any) -> str:
    """The HTML of a page, changed."""

    def draw(found: re.Match[str]) -> str:
        display = "block" if found["tag"] == "div" else "inline"
        drawn = str(convert(html.unescape(found["tex"]), display=display))
        for old, new in _SPACING:
            drawn = re.sub(old, new, drawn)
        return drawn

    def keep_whole(found: re.Match[str]) -> str:
        return re.sub(r"(?<![\w-])--[\w-]+", r'<span class="option">\g<0></span>', found[0])

    content = re.sub(r"<code>[^<]*</code>", keep_whole, _EQUATION.sub(draw, content))
    return re.sub(r'href="(\w+)\.md"', r'href="../\1/"', content)
