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
from dsmooth.sampling.image_files import NumberedPngs, write_adm_npz
from dsmooth.sampling.request import Request
from dsmooth.sampling.shards import Shards, open_shards

pytestmark = pytest.mark.quick

SHAPE = (1, 2, 3)


def images(first: int, count: int) -> Tensor:
    """Images that tell their number."""
    numbers = torch.arange(first, first + count).float().view(-1, 1, 1, 1)
    return numbers.expand(count, *SHAPE)


def chunks(shards: Shards, draw: Request, chunk: int) -> Iterator[Tensor]:
    """What `shards` lacks."""
    for done in range(shards.done, draw.count, chunk):
        yield images(draw.first_index + done, min(chunk, draw.count - done))


def read(paths: list[Path]) -> np.ndarray:
    return np.concatenate([np.load(path) for path in paths])


@pytest.mark.parametrize(
    ("n", "size", "chunk"), [(1, 10, 3), (10, 10, 3), (23, 10, 4), (20, 5, 64)]
)
def test_every_image_once(tmp_path: Path, n: int, size: int, chunk: int) -> None:
    draw = Request(n, first_index=7)
    shards = Shards(tmp_path, draw, SHAPE, size=size)
    for x in chunks(shards, draw, chunk):
        shards.add(x)
    assert shards.done == n
    assert [path.name for path in shards.paths] == sorted(p.name for p in tmp_path.glob("*.npy"))
    assert all(len(np.load(path)) <= size for path in shards.paths)
    assert np.array_equal(read(shards.paths), images(7, n).numpy())


@pytest.mark.parametrize("calls", [0, 1, 2, 3, 5])
def test_a_stopped_run_goes_on(tmp_path: Path, calls: int) -> None:
    draw = Request(20)
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
    Shards(tmp_path, Request(3), SHAPE, {"seed": 0}).add(images(0, 3))
    with pytest.raises(ValueError, match="another drawing: seed 0, not 1; choose another folder"):
        Shards(tmp_path, Request(3), SHAPE, {"seed": 1})
    with pytest.raises(ValueError, match="a drawing of 3 images: ask for 3 or more, not 2"):
        Shards(tmp_path, Request(2), SHAPE, {"seed": 0})
    (tmp_path / "shards.json").unlink()
    with pytest.raises(ValueError, match=r"without shards\.json"):
        Shards(tmp_path, Request(3), SHAPE)


@pytest.mark.parametrize("counts", [(3, 20), (7, 8), (10, 11, 13), (14, 14, 21)])
def test_a_folder_grows(tmp_path: Path, counts: tuple[int, ...]) -> None:
    """A larger draw leaves the files that it alone would have made."""
    for n in counts:
        draw = Request(n)
        shards = Shards(tmp_path / "grown", draw, SHAPE, size=7)
        for x in chunks(shards, draw, 3):
            shards.add(x)
    at_once = Shards(tmp_path / "at once", draw, SHAPE, size=7)
    at_once.add(images(0, n))
    for path in (*at_once.paths, tmp_path / "at once" / "shards.json"):
        assert path.read_bytes() == (tmp_path / "grown" / path.name).read_bytes()


def test_growing_stopped_before_its_first_image(tmp_path: Path) -> None:
    """The last file's header is that of the larger draw then: either draw goes on from there."""
    Shards(tmp_path, Request(3), SHAPE, size=7).add(images(0, 3))
    Shards(tmp_path, Request(5), SHAPE, size=7)
    assert Shards(tmp_path, Request(3), SHAPE, size=7).done == 3
    assert np.array_equal(read([tmp_path / "shard_00000.npy"]), images(0, 3).numpy())


def test_numbered_pictures(tmp_path: Path) -> None:
    from PIL import Image

    x = torch.linspace(-1, 1, 5).view(5, 1, 1, 1).expand(5, *SHAPE)
    NumberedPngs(tmp_path, Request(2, first_index=7), SHAPE, {"seed": 0}).add(x[:2])
    rest = NumberedPngs(tmp_path, Request(5, first_index=7), SHAPE, {"seed": 0})
    assert rest.done == 2
    rest.add(x[2:])
    names = sorted(path.name for path in tmp_path.glob("*.png"))
    assert names == [f"{i:08d}.png" for i in range(7, 12)]
    pixels = np.stack([np.asarray(Image.open(tmp_path / name)) for name in names])
    assert np.array_equal(pixels, to_bytes(x)[:, 0].numpy())
    assert torch.equal(read_images(tmp_path).images, to_bytes(x))
    with pytest.raises(ValueError, match="another drawing: seed 0, not 1; choose another folder"):
        NumberedPngs(tmp_path, Request(5, first_index=7), SHAPE, {"seed": 1})
    with pytest.raises(ValueError, match=r"1 of 2 images diverged .* leave out --png and --adm"):
        rest.add(torch.stack([x[0], torch.full(SHAPE, torch.inf)]))
    (tmp_path / "images.json").unlink()
    with pytest.raises(ValueError, match=r"holds pictures without images\.json"):
        NumberedPngs(tmp_path, Request(5, first_index=7), SHAPE, {"seed": 0})


@pytest.mark.parametrize("channels", [1, 3])
def test_the_layout_of_adm(tmp_path: Path, channels: int) -> None:
    x = torch.rand(2, channels, 3, 4) * 2 - 1
    write_adm_npz(tmp_path / "x.npz", x)
    with np.load(tmp_path / "x.npz") as stored:
        assert stored.files == ["arr_0"]
        pixels = stored["arr_0"]
    assert pixels.dtype == np.uint8
    assert pixels.shape == (2, 3, 4, 3)
    expected = to_bytes(x).expand(2, 3, 3, 4).permute(0, 2, 3, 1)
    assert np.array_equal(pixels, expected.numpy())


def whole(folder: Path) -> Shards:
    """A finished draw of 20 images in files of 7."""
    shards = Shards(folder, Request(20), SHAPE, size=7)
    for x in chunks(shards, Request(20), 6):
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
        Shards(tmp_path, Request(20), SHAPE, size=7)
    with pytest.raises((ValueError, FileNotFoundError), match=name):
        read_images(tmp_path)


def test_shards_are_read_as_they_were_written(tmp_path: Path) -> None:
    shards = Shards(tmp_path, Request(3), SHAPE, size=2)
    x = torch.linspace(-1, 1, 18).view(3, *SHAPE)
    shards.add(x)
    assert torch.equal(read_images(tmp_path).images, to_bytes(x))


def test_an_unfinished_shard_is_no_array(tmp_path: Path) -> None:
    shards = Shards(tmp_path, Request(20), SHAPE, size=7)
    shards.add(images(0, 10))
    assert len(np.load(shards.paths[0])) == 7
    with pytest.raises(ValueError, match="array"):
        np.load(shards.paths[1])


def test_a_full_disk_is_named_and_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shards = Shards(tmp_path, Request(20), SHAPE, size=7)
    shards.add(images(0, 6))

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("os.fsync", full)
        with pytest.raises(OSError, match=r"could not write .*shard_00000\.npy: No space left"):
            shards.add(images(6, 6))
    again = Shards(tmp_path, Request(20), SHAPE, size=7)
    assert again.done == 6
    again.add(images(6, 14))
    assert np.array_equal(read(again.paths), images(0, 20).numpy())


def test_a_folder_has_one_writer(tmp_path: Path) -> None:
    with (
        open_shards(tmp_path, Request(3), SHAPE),
        pytest.raises(ValueError, match="another process that draws into it is at work"),
        open_shards(tmp_path, Request(3), SHAPE),
    ):
        pass


def test_a_size_below_one(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="size must be at least 1, got 0"):
        Shards(tmp_path, Request(1), SHAPE, size=0)
