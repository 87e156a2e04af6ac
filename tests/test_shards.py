"""Images streamed to numbered files: the same ones however often the run was stopped."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from dsmooth.sampling.shards import draw_to_shards

SHAPE = (1, 2, 3)


def draw(first: int, count: int) -> Tensor:
    """Images that tell their number."""
    numbers = torch.arange(first, first + count).float().view(-1, 1, 1, 1)
    return numbers.expand(count, *SHAPE)


def read(paths: list[Path]) -> np.ndarray:
    return np.concatenate([np.load(path) for path in paths])


@pytest.mark.parametrize(
    ("n", "shard_size", "chunk"), [(1, 10, 3), (10, 10, 3), (23, 10, 4), (20, 5, 64)]
)
def test_every_image_once(tmp_path: Path, n: int, shard_size: int, chunk: int) -> None:
    seen: list[int] = []
    paths = draw_to_shards(
        draw,
        n,
        tmp_path,
        image_shape=SHAPE,
        first_index=7,
        shard_size=shard_size,
        chunk=chunk,
        progress=seen.append,
    )
    assert [path.name for path in paths] == sorted(path.name for path in tmp_path.glob("*.npy"))
    assert np.array_equal(read(paths), draw(7, n).numpy())
    assert seen[0] == 0
    assert seen[-1] == n
    assert seen == sorted(set(seen))


@pytest.mark.parametrize("calls", [0, 1, 2, 3, 5])
def test_a_stopped_run_goes_on(tmp_path: Path, calls: int) -> None:
    drawn: list[int] = []

    def stops(first: int, count: int) -> Tensor:
        if len(drawn) == calls:
            raise KeyboardInterrupt
        drawn.append(count)
        return draw(first, count)

    with pytest.raises(KeyboardInterrupt):
        draw_to_shards(stops, 20, tmp_path, image_shape=SHAPE, shard_size=7, chunk=3)
    again: list[int] = []

    def goes_on(first: int, count: int) -> Tensor:
        again.append(count)
        return draw(first, count)

    paths = draw_to_shards(goes_on, 20, tmp_path, image_shape=SHAPE, shard_size=7, chunk=3)
    assert sum(drawn) + sum(again) == 20
    assert np.array_equal(read(paths), draw(0, 20).numpy())
    assert draw_to_shards(goes_on, 20, tmp_path, image_shape=SHAPE, shard_size=7, chunk=3) == paths
    assert sum(drawn) + sum(again) == 20


def test_another_runs_folder_is_refused(tmp_path: Path) -> None:
    draw_to_shards(draw, 3, tmp_path, image_shape=SHAPE, description={"seed": 0})
    with pytest.raises(ValueError, match=r"holds another run: its description is \{'seed': 0\}"):
        draw_to_shards(draw, 3, tmp_path, image_shape=SHAPE, description={"seed": 1})
    with pytest.raises(ValueError, match="its n is 3, not 4"):
        draw_to_shards(draw, 4, tmp_path, image_shape=SHAPE, description={"seed": 0})
    (tmp_path / "shards.json").unlink()
    with pytest.raises(ValueError, match=r"without shards\.json"):
        draw_to_shards(draw, 3, tmp_path, image_shape=SHAPE)


@pytest.mark.parametrize("name", ["n", "shard_size", "chunk"])
def test_counts_below_one(tmp_path: Path, name: str) -> None:
    arguments = {"n": 1, "shard_size": 1, "chunk": 1, name: 0}
    with pytest.raises(ValueError, match=f"{name} must be at least 1, got 0"):
        draw_to_shards(draw, folder=tmp_path, image_shape=SHAPE, **arguments)
