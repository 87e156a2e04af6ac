"""What every report.html must be: one file that needs nothing else, and shows in a browser."""

from __future__ import annotations

import base64
import io
import json
import re
import shutil
import subprocess
from html import unescape
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

VOID = {"area", "base", "br", "col", "embed", "hr", "img", "input", "link", "meta", "source", "wbr"}


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


def decode(uri: str) -> Image.Image:
    """The picture that a data URI carries."""
    header, _, content = uri.partition(",")
    assert header == "data:image/png;base64"
    picture = Image.open(io.BytesIO(base64.b64decode(content, validate=True)))
    picture.load()
    return picture


def check_self_contained(text: str) -> Page:
    """Fail unless the page loads nothing, runs nothing, and describes every picture."""
    page = Page(text)
    names = [tag for tag, _ in page.tags]
    for forbidden in ("script", "iframe", "object", "embed", "base", "video", "audio"):
        assert forbidden not in names
    pictures = 0
    for tag, attributes in page.tags:
        for name, value in attributes.items():
            assert not name.startswith("on")
            if name in ("src", "srcset", "poster", "data", "background"):
                decode(value or "")
            if name == "href" and tag != "a":
                assert value == "data:,"
        if tag == "img":
            pictures += 1
            assert (attributes.get("alt") or "").strip()
            assert "src" in attributes
    assert pictures >= 5
    style = "".join(re.findall(r"<style>(.*?)</style>", text, re.DOTALL))
    assert "url(" not in style
    assert "@import" not in style
    assert (
        "meta",
        {"name": "viewport", "content": "width=device-width, initial-scale=1"},
    ) in page.tags
    assert "$" not in re.sub(r"base64,[^\"]*", "", text)
    return page


# Shows a page in a frame of some width and writes what it finds into its own document.
FRAME = """<!DOCTYPE html><html><body>
<iframe id="frame" style="width: WIDTHpx; height: 900px; border: 0"></iframe>
<pre id="found"></pre>
<script>
const frame = document.getElementById("frame");
frame.onload = () => {
  const page = frame.contentDocument, root = page.documentElement;
  const pictures = [...page.images];
  const sizes = [...page.querySelectorAll("p, td, th, small, figcaption")]
    .map(element => parseFloat(frame.contentWindow.getComputedStyle(element).fontSize));
  document.getElementById("found").textContent = JSON.stringify({
    pictures: pictures.length,
    broken: pictures.filter(p => !p.complete || !p.naturalWidth).map(p => p.alt),
    overflow: root.scrollWidth - root.clientWidth,
    smallest_text: Math.min(...sizes),
  });
};
frame.srcdoc = PAGE;
</script></body></html>"""


def browse(path: Path, width: int, folder: Path) -> dict[str, Any]:
    """What headless Chromium sees of a page at a width in CSS pixels, without a network.

    folder: for the browser's own files. Returns the number of pictures, the broken ones, by how
    much the page is wider than the window, the smallest text, and what the console says. Skips the
    test where there is no browser.
    """
    browser = next(filter(None, map(shutil.which, ("chromium", "chromium-browser"))), None)
    if browser is None:
        pytest.skip("needs chromium, for which nothing named so is on the PATH")
    source = json.dumps(path.read_text(encoding="utf-8")).replace("</", "<\\/")
    frame = folder / "frame.html"
    frame.write_text(FRAME.replace("WIDTH", str(width)).replace("PAGE", source), encoding="utf-8")
    profile = f"--user-data-dir={folder / 'profile'}"
    offline = "--host-resolver-rules=MAP * ~NOTFOUND"
    command = [browser, "--headless", "--no-sandbox", "--disable-gpu", offline, profile]
    done = subprocess.run(
        [*command, "--enable-logging=stderr", "--virtual-time-budget=5000", "--dump-dom",
         frame.as_uri()],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )  # fmt: skip
    found = re.search(r'<pre id="found">(.+?)</pre>', done.stdout, re.DOTALL)
    assert found, done.stderr[-2000:]
    messages = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    return {**json.loads(unescape(found[1])), "messages": messages}
