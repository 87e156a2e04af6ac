"""Folders of images: the same files however often the call was stopped."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from dsmooth.commands.sample import check_outputs
from dsmooth.data import to_bytes
from dsmooth.evaluate.sources import read_images
from dsmooth.fields import difference
from dsmooth.files import lock_folder
from dsmooth.progress import Progress
from dsmooth.sampling.output import Pictures, Shards, fill, write_adm_npz
from dsmooth.sampling.request import Request
from tests.helpers.data_makers import refuses
from tests.helpers.kills import as_killed, contents, states_of_kills

pytestmark = pytest.mark.quick

SHAPE = (1, 2, 3)


def images(first: int, count: int) -> Tensor:
    """Images that tell their number."""
    return torch.arange(first, first + count).float().view(-1, 1, 1, 1).expand(count, *SHAPE)


class Sevens(Shards):
    size = 7


class Draw:
    """Draws such images, and fails at the part number `stop`."""

    def __init__(self, stop: int | None = None) -> None:
        self.stop = stop
        self.drawn: list[int] = []

    def __call__(self, part: Request, progress: Progress) -> Tensor:
        if len(self.drawn) == self.stop:
            raise KeyboardInterrupt
        self.drawn.append(part.count)
        progress(1.0)
        return images(part.first_index, part.count)


def draw_into(folder: Path, n: int, *, stop: int | None = None, chunk=7, seed=0) -> list[int]:
    """Draw n images into files of 7; the sizes of the parts that were drawn."""
    draw = Draw(stop)
    fill(Sevens(folder, Request(n), SHAPE, {"seed": seed}), draw, chunk)
    return draw.drawn


def read(folder: Path) -> np.ndarray:
    return np.concatenate([np.load(path) for path in sorted(folder.glob("*.npy"))])


@pytest.mark.parametrize(("n", "chunk"), [(1, 3), (7, 3), (16, 21), (20, 64)])
def test_every_image_once(tmp_path: Path, n: int, chunk: int) -> None:
    seen: list[float] = []
    shards, draw = Sevens(tmp_path, Request(n, first_index=7), SHAPE, {}), Draw()
    assert fill(shards, draw, chunk, seen.append) == (n, 0)
    assert np.array_equal(read(tmp_path), images(7, n).numpy())
    assert max(draw.drawn) <= max(7, chunk)
    assert (seen, seen[0], seen[-1]) == (sorted(seen), 0, n)
    assert fill(shards, Draw(stop=0), chunk) == (0, 0)


@pytest.mark.parametrize(
    ("before", "stop", "left"), [(0, 0, 20), (0, 2, 6), (3, 0, 20), (3, 1, 13), (8, 0, 13)]
)
def test_a_stopped_call_is_resumed(tmp_path: Path, before: int, stop: int, left: int) -> None:
    """Files are then as if nobody stopped it. A larger call draws a file anew that gets more."""
    if before:
        draw_into(tmp_path / "stopped", before)
    with pytest.raises(KeyboardInterrupt):
        draw_into(tmp_path / "stopped", 20, stop=stop)
    assert sum(draw_into(tmp_path / "stopped", 20)) == left
    draw_into(tmp_path / "whole", 20)
    assert contents(tmp_path / "stopped") == contents(tmp_path / "whole")


@pytest.mark.parametrize("before", [0, 3])
def test_killed_at_any_change_of_a_file_the_folder_is_completed(tmp_path: Path, before: int):
    """With the same files as of one call."""
    draw_into(tmp_path / "whole", 16)
    if before:
        draw_into(tmp_path / "killed", before)
    states = states_of_kills(lambda: draw_into(tmp_path / "killed", 16), tmp_path / "killed")
    for number, state in enumerate(states):
        folder = as_killed(tmp_path / str(number), state)
        draw_into(folder, 16)
        assert contents(folder) == contents(tmp_path / "whole")
    assert len(states) > 12


def test_files_between_others_that_are_missing(tmp_path: Path) -> None:
    """As where one process of several was quicker than its neighbours."""
    draw_into(tmp_path, 20)
    manifest = tmp_path / "shards.json"
    stored = json.loads(manifest.read_text())
    parts = {**stored["parts"], "shard_00000.npy": "", "shard_00002.npy": ""}
    manifest.write_text(json.dumps({**stored, "parts": parts}))
    refuses("is unfinished: repeat the command that draws it", read_images, tmp_path)
    assert draw_into(tmp_path, 20, chunk=14) == [7, 6]
    assert np.array_equal(read(tmp_path), images(0, 20).numpy())


def test_another_calls_folder_is_refused(tmp_path: Path) -> None:
    check_outputs([tmp_path / "samples-0.9"], 10**6)  # a folder, for all its dot
    refuses(r"--out must end in \.png or \.npz, or be a folder", check_outputs, [Path("x.txt")], 1)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.json").write_text("{}")
    refuses("is the folder of a run or a pair: choose another one", draw_into, tmp_path / "run", 3)
    draw_into(tmp_path, 3)
    with lock_folder(tmp_path, "a test"):
        refuses("draws into it is at w", draw_into, tmp_path, 3)
    refuses("of another request: its seed is 0, not 1;", draw_into, tmp_path, 3, seed=1)
    assert difference({"sha256": ["0" * 64]}, {"sha256": ["1" * 64]}).count("0") < 64
    refuses("a drawing of 3 images: ask for 3 or more, not 2", draw_into, tmp_path, 2)
    refuses(r"images take [\d,]+ bytes or more, but .* has [\d,]+", draw_into, tmp_path, 10**15)
    manifest = tmp_path / "shards.json"
    stored = json.loads(manifest.read_text())
    for change in ({"count": "3"}, {"count": 200}, {"shard_size": 0}, {"first_index": 7.5}):
        values = {**stored, "request": {**stored["request"], **change}}
        manifest.write_text(json.dumps(values))
        for use in (lambda: draw_into(tmp_path, 20), lambda: read_images(tmp_path)):
            refuses(r"shards\.json is damaged: ", use)
    manifest.write_text(json.dumps({"n": 3}))  # as earlier versions wrote it
    for use in (lambda: draw_into(tmp_path, 20), lambda: read_images(tmp_path)):
        refuses(r"shards\.json is not a record of dsmooth", use)
    manifest.unlink()
    refuses(r"without shards\.json", draw_into, tmp_path, 3)


def test_numbered_pictures(tmp_path: Path) -> None:
    from PIL import Image

    x = torch.linspace(-1, 1, 5).view(5, 1, 1, 1).expand(5, *SHAPE).clone()
    x[3] = torch.nan

    def draw(n: int, seed: int = 0) -> tuple[int, int]:
        folder = Pictures(tmp_path, Request(n, first_index=7), SHAPE, {"seed": seed})
        return fill(folder, lambda part, _: x[part.first_index - 7 :][: part.count], 1)

    assert [draw(n) for n in (2, 5, 2)] == [(2, 0), (3, 1), (0, 0)]
    (tmp_path / "00000008.png").unlink()
    assert draw(3) == (1, 0)
    names = sorted(path.name for path in tmp_path.glob("*.png"))
    assert names == [f"{i:08d}.png" for i in range(7, 12)]
    pixels = np.stack([np.asarray(Image.open(tmp_path / name)) for name in names])
    x[3] = 0  # grey
    assert np.array_equal(pixels, to_bytes(x)[:, 0].numpy())
    assert torch.equal(read_images(tmp_path).images, to_bytes(x))
    refuses("of another request: its seed is 0, not 1;", draw, 5, seed=1)
    refuses(r"holds \*\.png: choose another folder", draw_into, tmp_path, 3)
    (tmp_path / names[0]).write_bytes((tmp_path / names[1]).read_bytes())
    for use in (lambda: draw(5), lambda: read_images(tmp_path)):
        refuses(r"00000007\.png does not hold the images that were", use)
    (tmp_path / "images.json").unlink()
    refuses(r"holds \*\.png without images\.json", draw, 5)


@pytest.mark.parametrize("channels", [1, 3])
def test_the_layout_of_adm(tmp_path: Path, channels: int) -> None:
    """Without the image that diverged."""
    x = torch.rand(3, channels, 3, 4) * 2 - 1
    x[1, 0, 0, 0] = torch.inf
    write_adm_npz(tmp_path / "x.npz", x)
    with np.load(tmp_path / "x.npz") as stored:
        assert stored.files == ["arr_0"]
        pixels = stored["arr_0"]
    expected = to_bytes(x[::2]).expand(2, 3, 3, 4).permute(0, 2, 3, 1)
    assert pixels.dtype == np.uint8
    assert np.array_equal(pixels, expected.numpy())


@pytest.mark.parametrize(
    "damage",
    [lambda data: data[:-1] + bytes([data[-1] ^ 1]), lambda data: data[:-4], lambda data: None],
    ids=["flipped", "cut", "removed"],
)
def test_a_damaged_file_is_neither_read_nor_gone_on_with(tmp_path, damage) -> None:
    draw_into(tmp_path, 20)
    path = tmp_path / "shard_00002.npy"
    damaged = damage(path.read_bytes())
    path.unlink()
    if damaged is not None:
        path.write_bytes(damaged)
    for use in (lambda: draw_into(tmp_path, 20), lambda: read_images(tmp_path)):
        refuses("shard_00002", use, error=(ValueError, FileNotFoundError))
    before = contents(tmp_path)
    refuses("shard_00002", draw_into, tmp_path, 30, error=(ValueError, FileNotFoundError))
    assert contents(tmp_path) == before


def test_shards_are_read_as_they_were_written(tmp_path: Path) -> None:
    """A diverged image too, which readers of bytes leave out and count."""
    x = torch.linspace(-1, 1, 18).view(3, *SHAPE).clone()
    x[1] = torch.nan
    assert fill(Sevens(tmp_path, Request(3), SHAPE, {}), lambda *_: x, 4) == (3, 1)
    assert np.array_equal(read(tmp_path), x.numpy(), equal_nan=True)
    found = read_images(tmp_path)
    assert torch.equal(found.images, to_bytes(x[::2]))
    assert found.diverged == 1
