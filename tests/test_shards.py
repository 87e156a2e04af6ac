"""Images streamed to numbered files: the same ones however often the run was stopped."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from dsmooth.sampling.draw import Draw
from dsmooth.sampling.shards import Shards

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
    paths = sorted(tmp_path.glob("*.npy"))
    assert [path.name for path in paths] == [f"shard_{i:05d}.npy" for i in range(-(-n // size))]
    assert all(len(np.load(path)) <= size for path in paths)
    assert np.array_equal(read(paths), images(7, n).numpy())


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
    assert np.array_equal(read(sorted(tmp_path.glob("*.npy"))), images(0, 20).numpy())
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


def test_a_size_below_one(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="size must be at least 1, got 0"):
        Shards(tmp_path, Draw(1), SHAPE, size=0)
