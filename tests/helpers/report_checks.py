"""The promise of every report.html: one file that loads nothing else and describes its pictures."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator
from contextlib import contextmanager
from xml.etree import ElementTree

import pytest
import torch
from PIL import Image

from dsmooth.data.pictures import grid_png

FORBIDDEN = {"script", "iframe", "object", "embed", "base", "video", "audio"}


@contextmanager
def without_plots() -> Iterator[None]:
    """Plots of reports are a pixel: drawing them takes most of the time of a report."""
    pixel = grid_png(torch.zeros(1, 1, 1, 1))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("dsmooth.report.plots.figure_png", lambda *_: pixel)
        yield


def check_self_contained(text: str) -> None:
    """Fail unless the page is well-formed, loads and runs nothing, and describes every picture."""
    elements = [*ElementTree.fromstring(text).iter()]
    assert FORBIDDEN.isdisjoint(element.tag for element in elements)
    for element in elements:
        for name, value in element.items():
            assert not name.startswith("on")
            if name in ("src", "srcset", "poster", "data", "background"):
                header, _, content = value.partition(",")
                assert header == "data:image/png;base64"
                Image.open(io.BytesIO(base64.b64decode(content, validate=True))).load()
            if name == "href" and element.tag != "a":
                assert value == "data:,"
        if element.tag == "img":
            assert element.get("alt", "").strip()
            assert element.get("src")
        if element.tag == "style":
            assert not any(words in (element.text or "") for words in ("url(", "@import"))
    links = {element.get("href") for element in elements if element.tag == "a"}
    ids = {f"#{element.get('id')}" for element in elements if element.get("id")}
    assert links == ids  # the list of contents
    assert sum(element.tag == "img" for element in elements) >= 5
