"""Hooks of mkdocs, which run on each page.

Equations become MathML, which browsers draw without a script. A notebook's links to Markdown files
become links to pages. The footer has the version. With the environment variable DSMOOTH_REPOSITORY,
an address, pages link to it.
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


def on_config(config: Any, **_: Any) -> Any:
    """Set the version, and the repository if its address is given."""
    version = re.search(r'__version__ = "(.+)"', (_PACKAGE / "_extension.py").read_text())
    assert version is not None
    config.copyright = f"dsmooth {version[1]}"
    config.repo_url = os.environ.get("DSMOOTH_REPOSITORY") or None
    if config.repo_url:
        config.repo_name = config.repo_url.rstrip("/").rpartition("/")[2]
    return config


def on_page_content(content: str, **_: Any) -> str:
    """Convert the equations and links of a page's HTML."""

    def draw(found: re.Match[str]) -> str:
        display = "block" if found["tag"] == "div" else "inline"
        return str(convert(html.unescape(found["tex"]), display=display))

    return re.sub(r'href="(\w+)\.md"', r'href="../\1/"', _EQUATION.sub(draw, content))
