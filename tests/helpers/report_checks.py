"""The promise of every report.html: one file that loads nothing else and describes its pictures."""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from html.parser import HTMLParser

import pytest
import torch
from PIL import Image

from dsmooth.pictures import grid_png

VOID = {"area", "base", "br", "col", "embed", "hr", "img", "input", "link", "meta", "source", "wbr"}
FORBIDDEN = {"script", "iframe", "object", "embed", "base", "video", "audio"}


@contextmanager
def without_plots() -> Iterator[None]:
    """Plots of reports are a pixel: drawing them takes most of the time of a report."""
    pixel = grid_png(torch.zeros(1, 1, 1, 1))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("dsmooth.report.plots.png", lambda *_: pixel)
        yield


class Page(HTMLParser):
    """Collects tags with their attributes, and checks that they nest."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def check_self_contained(text: str) -> None:
    """Fail unless the page loads nothing, runs nothing, and describes every picture."""
    page = Page(text)
    assert FORBIDDEN.isdisjoint(tag for tag, _ in page.tags)
    for tag, attributes in page.tags:
        for name, value in attributes.items():
            assert not name.startswith("on")
            if name in ("src", "srcset", "poster", "data", "background"):
                header, _, content = (value or "").partition(",")
                assert header == "data:image/png;base64"
                Image.open(io.BytesIO(base64.b64decode(content, validate=True))).load()
            if name == "href" and tag != "a":
                assert value == "data:,"
        if tag == "img":
            assert (attributes.get("alt") or "").strip()
            assert "src" in attributes
    links = [(attributes.get("href") or "") for tag, attributes in page.tags if tag == "a"]
    ids = {attributes["id"] for _, attributes in page.tags if "id" in attributes}
    assert {link[1:] for link in links if link.startswith("#")} == ids  # the list of contents
    assert sum(tag == "img" for tag, _ in page.tags) >= 5
    style = "".join(re.findall(r"<style>(.*?)</style>", text, re.DOTALL))
    assert "url(" not in style
    assert "@import" not in style
    assert "$" not in re.sub(r"base64,[^\"]*", "", text)  # every place of the template is filled
