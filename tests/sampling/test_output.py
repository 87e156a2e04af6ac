"""Folders of pictures."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from dsmooth.commands.sample import check_outputs
from dsmooth.data import to_bytes
from dsmooth.data.sources import read_images
from dsmooth.files import lock_folder
from dsmooth.sampling import output
from dsmooth.sampling.request import Request
from tests.helpers.data_makers import refuses
from tests.helpers.networks import network

pytestmark = pytest.mark.quick

MODEL = network()
X = torch.linspace(-1, 1, 40).view(40, 1, 1, 1).expand(40, 1, 4, 4).clone()
X[3] = torch.nan


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Let image i be X[i], and a call draw at most three; the numbers of those that were drawn."""
    numbers: list[int] = []

    def draw(_: object, request: Request, precision: str) -> Tensor:
        part = range(request.first_index, request.first_index + request.count)
        numbers.extend(part)
        return X[part.start : part.stop]

    monkeypatch.setattr(output, "draw", draw)
    monkeypatch.setitem(output.CHUNK, "cpu", 3)
    return numbers


def fill(folder: Path, n: int, first: int = 0) -> tuple[int, int]:
    return output.draw_folder(folder, MODEL, Request(n, first_index=first), {"first_index": first})


def test_numbered_pictures(tmp_path: Path, drawn: list[int]) -> None:
    """A larger call adds to them, and one that is missing is drawn again."""
    assert [fill(tmp_path, n, first=2) for n in (1, 5, 3)] == [(1, 0), (4, 1), (0, 0)]
    names = [f"{i:08d}.png" for i in range(2, 7)]
    assert sorted(path.name for path in tmp_path.glob("*.png")) == names
    for i in (2, 5):
        (tmp_path / f"{i:08d}.png").unlink()
    drawn.clear()
    assert fill(tmp_path, 5, first=2) == (2, 0)
    assert drawn == [2, 5]
    expected = X[2:7].nan_to_num()  # the image that diverged is grey
    pixels = np.stack([np.asarray(Image.open(tmp_path / name)) for name in names])
    assert np.array_equal(pixels, to_bytes(expected)[:, 0].numpy())
    assert torch.equal(read_images(tmp_path).images, to_bytes(expected))


def test_another_folder_is_refused(tmp_path: Path, drawn: list[int]) -> None:
    check_outputs([tmp_path / "samples-0.9"])  # a folder, for all its dot
    refuses(r"--out must end in \.png or \.npz, or be a folder", check_outputs, [Path("x.txt")])
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.json").write_text("{}")
    refuses("run holds other files: choose a new folder", fill, tmp_path / "run", 3)
    fill(tmp_path / "x", 3)
    with lock_folder(tmp_path / "x", "a test"):
        refuses("draws into it is at w", fill, tmp_path / "x", 4)
    (tmp_path / "x" / "images.json").unlink()
    refuses("x holds other files", fill, tmp_path / "x", 3)
