"""Images streamed to numbered files: the same ones however often the run was stopped."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from dsmooth.data import to_bytes
from dsmooth.evaluate.sources import read_images
from dsmooth.sampling.draw import Draw
from dsmooth.sampling.shards import Shards, open_shards

SHAPE = (1, 2, 3)


def images(first: int, count: int) -> Tensor:
    """Images that tell their number."""
    numbers = torch.arange(first, first + count).float().view(-1, 1, 1, 1)
    return numbers.expand(count, *SHAPE)


def chunks(shards: Shards, draw: Draw, chunk: int) -> Iterator[Tensor]:
    """What `shards` lacks."""
    for done in range(shards.done, draw.count, chunk):
        yield images(draw.first_index + done, min(chunk, draw.count - done))


def read(paths: list[Path]) -> np.ndarray:
    return np.concatenate([np.load(path) for path in paths])


@pytest.mark.parametrize(
    ("n", "size", "chunk"), [(1, 10, 3), (10, 10, 3), (23, 10, 4), (20, 5, 64)]
)
def test_every_image_once(tmp_path: Path, n: int, size: int, chunk: int) -> None:
    draw = Draw(n, first_index=7)
    shards = Shards(tmp_path, draw, SHAPE, size=size)
    for x in chunks(shards, draw, chunk):
        shards.add(x)
    assert shards.done == n
    assert [path.name for path in shards.paths] == sorted(p.name for p in tmp_path.glob("*.npy"))
    assert all(len(np.load(path)) <= size for path in shards.paths)
    assert np.array_equal(read(shards.paths), images(7, n).numpy())


@pytest.mark.parametrize("calls", [0, 1, 2, 3, 5])
def test_a_stopped_run_goes_on(tmp_path: Path, calls: int) -> None:
    draw = Draw(20)
    first = Shards(tmp_path, draw, SHAPE, size=7)
    for x, _ in zip(chunks(first, draw, 3), range(calls), strict=False):
        first.add(x)
    again = Shards(tmp_path, draw, SHAPE, size=7)
    assert again.done == first.done == min(20, 3 * calls)
    for x in chunks(again, draw, 3):
        again.add(x)
    assert np.array_equal(read(again.paths), images(0, 20).numpy())
    assert Shards(tmp_path, draw, SHAPE, size=7).done == 20


def test_another_runs_folder_is_refused(tmp_path: Path) -> None:
    Shards(tmp_path, Draw(3), SHAPE, {"seed": 0}).add(images(0, 3))
    with pytest.raises(ValueError, match=r"another drawing: its description is \{'seed': 0\}"):
        Shards(tmp_path, Draw(3), SHAPE, {"seed": 1})
    with pytest.raises(ValueError, match="its n is 3, not 4"):
        Shards(tmp_path, Draw(4), SHAPE, {"seed": 0})
    (tmp_path / "shards.json").unlink()
    with pytest.raises(ValueError, match=r"without shards\.json"):
        Shards(tmp_path, Draw(3), SHAPE)


def whole(folder: Path) -> Shards:
    """A finished draw of 20 images in files of 7."""
    shards = Shards(folder, Draw(20), SHAPE, size=7)
    for x in chunks(shards, Draw(20), 6):
        shards.add(x)
    return shards


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-4])


def lengthen(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"0000")


@pytest.mark.parametrize("damage", [flip, cut, lengthen, Path.unlink])
@pytest.mark.parametrize("shard", [0, 2])
def test_a_damaged_shard_is_neither_read_nor_gone_on_with(
    tmp_path: Path, damage: Callable[[Path], None], shard: int
) -> None:
    damage(whole(tmp_path).paths[shard])
    name = f"shard_0000{shard}"
    with pytest.raises((ValueError, FileNotFoundError), match=name):
        Shards(tmp_path, Draw(20), SHAPE, size=7)
    with pytest.raises((ValueError, FileNotFoundError), match=name):
        read_images(tmp_path)


def test_shards_are_read_as_they_were_written(tmp_path: Path) -> None:
    shards = Shards(tmp_path, Draw(3), SHAPE, size=2)
    x = torch.linspace(-1, 1, 18).view(3, *SHAPE)
    shards.add(x)
    assert torch.equal(read_images(tmp_path).images, to_bytes(x))


def test_an_unfinished_shard_is_no_array(tmp_path: Path) -> None:
    shards = Shards(tmp_path, Draw(20), SHAPE, size=7)
    shards.add(images(0, 10))
    assert len(np.load(shards.paths[0])) == 7
    with pytest.raises(ValueError, match="array"):
        np.load(shards.paths[1])


def test_a_full_disk_is_named_and_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shards = Shards(tmp_path, Draw(20), SHAPE, size=7)
    shards.add(images(0, 6))

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("os.fsync", full)
        with pytest.raises(OSError, match=r"could not write .*shard_00000\.npy: No space left"):
            shards.add(images(6, 6))
    again = Shards(tmp_path, Draw(20), SHAPE, size=7)
    assert again.done == 6
    again.add(images(6, 14))
    assert np.array_equal(read(again.paths), images(0, 20).numpy())


def test_a_folder_has_one_writer(tmp_path: Path) -> None:
    with (
        open_shards(tmp_path, Draw(3), SHAPE),
        pytest.raises(ValueError, match="another process that draws into it is at work"),
        open_shards(tmp_path, Draw(3), SHAPE),
    ):
        pass


def test_a_size_below_one(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="size must be at least 1, got 0"):
        Shards(tmp_path, Draw(1), SHAPE, size=0)
