"""The notebook of the documentation and the example in the package's help run."""

from __future__ import annotations

import ast
import json
import re
import textwrap
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import dsmooth
from tests.helpers.data_makers import refuses

NOTEBOOK = Path(__file__).parent.parent / "docs" / "quickstart.ipynb"
FEWER = {
    "budget=1.0, evaluations=2": "images=48, evaluations=1, evaluation_images=8",
    "(32": "(4", ", 32,": ", 4,", "arange(8)": "arange(2)", "leave(6,": "leave(3,",
    "(8, 6)": "(2, 3)",
}  # fmt: skip


def run_cell(source: str, names: dict[str, object]) -> object:
    """Run a cell and return the value of its last line, which a notebook displays."""
    tree = ast.parse(source)
    last = tree.body.pop() if isinstance(tree.body[-1], ast.Expr) else ast.Expr(ast.Constant(None))
    exec(compile(tree, "cell", "exec"), names)
    return eval(
        compile(ast.fix_missing_locations(ast.Expression(last.value)), "cell", "eval"), names
    )


@pytest.mark.long
@pytest.mark.usefixtures("few_digits", "small_models")
@pytest.mark.skipif(not NOTEBOOK.exists(), reason="the documentation is not installed")
def test_the_notebook_runs_and_shows_what_is_stored(tmp_path, monkeypatch) -> None:
    """With a few training steps instead of a minute, and fewer images."""
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    cells = json.loads(NOTEBOOK.read_text())["cells"]
    for cell in (cell for cell in cells if cell["cell_type"] == "code"):
        source = shorter = "".join(cell["source"])
        for many, few in FEWER.items():
            shorter = shorter.replace(many, few)
        value = run_cell(shorter, names)
        stored = {kind for output in cell["outputs"] for kind in output.get("data", {})}
        assert isinstance(value, Image.Image) == ("image/png" in stored)
        assert (value is not None) == ("text/plain" in stored)
        assert "budget" not in source or value.images_seen == 48
    assert names["completed"].shape == (6, 1, 28, 28)


@pytest.mark.quick
def test_show_gives_a_picture_that_displays_itself() -> None:
    x = torch.linspace(-1, 1, 5 * 3 * 8 * 12).view(5, 3, 8, 12)
    x[4] = torch.inf  # diverged: grey
    picture = dsmooth.show(x, columns=2, zoom=1)
    assert picture.size == (2 * 13 + 1, 3 * 9 + 1)
    assert picture._repr_png_().startswith(b"\x89PNG")
    pixels = np.asarray(picture)
    assert pixels.shape == (28, 27, 3)
    expected = ((x[3] + 1) * 127.5).round().byte().permute(1, 2, 0).numpy()
    assert np.array_equal(pixels[10:18, 14:26], expected)
    assert (pixels[19:27, 1:13] == 128).all()
    assert dsmooth.show(x[:1, :1]).mode == "L"
    for images in (bytes_ := dsmooth.to_bytes(x[:4]), bytes_.numpy()):
        assert dsmooth.show(images).tobytes() == dsmooth.show(x[:4]).tobytes()
    with pytest.raises(TypeError, match=r"x must be uint8 or floating point, got torch\.int32"):
        dsmooth.show(bytes_.int())
    for name in ("columns", "zoom"):
        refuses(f"`{name}` must be at least 1, got 0", dsmooth.show, x, **{name: 0})
    for image in (x[0], x[0, 0], x[:1, :1].numpy()):
        assert dsmooth.show(image).size == (2 * 12 + 4, 2 * 8 + 4)
    assert dsmooth.show([*x[:3, 0]]).tobytes() == dsmooth.show(x[:3, :1]).tobytes()
    for wrong in (x[:0], x[:, :2], x[:, 0]):
        refuses("x must have shape", dsmooth.show, wrong)
    refuses(r"show\(2 \* x - 1\) shows images in \[0, 1\]", dsmooth.show, (x[:4] + 1) / 2)
    refuses(r"show\(x\.byte\(\)\) shows images in \[0, 255\]", dsmooth.show, (x[:4] + 1) * 127.5)


@pytest.mark.usefixtures("small_models")
def test_help_says_what_there_is_and_its_example_runs() -> None:
    text = dsmooth.__doc__ or ""
    missing = [n for n in dsmooth.__all__ if not re.search(rf"\b{n}\b", text)]
    assert missing == ["__version__"]
    example = text[text.index("    import dsmooth") : text.index("A pair of your own")]
    names: dict[str, object] = {}
    exec(textwrap.dedent(example).replace("64", "2"), names)
    assert names["completed"].shape == (2, 1, 28, 28)
    assert names["bound"].shape == (2,)
