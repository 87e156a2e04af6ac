"""Data sets at large: bytes and floats, missing data, downloads, lazy imports."""

from __future__ import annotations

import itertools
from pathlib import Path
from unittest.mock import Mock
from urllib.error import URLError

import pytest
import torch
import torchvision
from hypothesis import given, settings
from hypothesis import strategies as st

from dsmooth.data import DATASETS, SPLITS, ImageDataset, load_dataset, to_bytes, to_float
from dsmooth.data.published import PUBLISHED
from tests.helpers.data_makers import random_bytes, refused, refuses

pytestmark = pytest.mark.quick


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
def test_every_byte_survives_the_way_to_float_and_back(dtype: torch.dtype) -> None:
    levels = torch.arange(256, dtype=torch.uint8)
    x = to_float(levels)
    assert x.dtype == torch.float32
    # byte / 127.5 lies below 2, so it is rounded by at most 2^-24; the difference, by less again.
    assert (x.double() - (levels.double() / 127.5 - 1)).abs().max() < 2.0**-23
    assert (x[0], x[255]) == (-1, 1)
    assert torch.equal(to_bytes(x.to(dtype)), levels)


@given(st.floats(allow_nan=False, width=32))
@settings(deadline=None)
def test_to_bytes_gives_the_nearest_level(value: float) -> None:
    level = int(to_bytes(torch.tensor([value], dtype=torch.float64)))
    distance = abs(level / 127.5 - 1 - value)
    for other in (level - 1, level + 1):
        if 0 <= other <= 255:
            assert distance <= abs(other / 127.5 - 1 - value) + 1e-15


def test_conversions_refuse_what_has_no_meaning() -> None:
    refuses(r"NaN, got 1 among 3", to_bytes, torch.tensor([0.0, float("nan"), 1.0]))
    with pytest.raises(ValueError, match=r"x must have a floating-point dtype, got torch.uint8"):
        to_bytes(torch.zeros(2, dtype=torch.uint8))
    with pytest.raises(TypeError, match=r"x must be a torch.Tensor, got a ndarray: use torch.from"):
        to_bytes(torch.zeros(2).numpy())
    refuses(r"images must have dtype torch.uint8, got torch.float32", to_float, torch.zeros(2))
    with pytest.raises(TypeError, match=r"images must be a torch.Tensor, got a ndarray: use"):
        to_float(torch.zeros(2).byte().numpy())


def test_dataset_hands_out_what_it_holds() -> None:
    images = torch.from_numpy(random_bytes((7, 3, 4, 8)))
    dataset = ImageDataset(images, torch.arange(7), "folder", "train", "memory")
    assert (len(dataset), dataset.image_size, dataset.image_channels) == (7, (4, 8), 3)
    indices = torch.tensor([3, 0, 3])
    assert torch.equal(to_bytes(dataset.batch(indices)), images[indices])
    words = r"images must be uint8 .* got torch.uint8 .*\(7, 2, 4, 8\)"
    refuses(words, ImageDataset, images[:, :2], None, "folder", "train", "memory")
    with pytest.raises(ValueError, match=r"labels must be int64 of shape \(7,\), .* \(6,\)"):
        ImageDataset(images, torch.arange(6), "folder", "train", "memory")
    x, label = dataset[-1]
    assert torch.equal(x, to_float(images[6]))
    assert label == 6
    assert torch.equal(ImageDataset(images, None, "x", "train", "x")[3], to_float(images[3]))
    batch, labels = next(iter(torch.utils.data.DataLoader(dataset, batch_size=7)))
    assert torch.equal(batch, to_float(images))
    assert torch.equal(labels, torch.arange(7))
    with pytest.raises(IndexError):
        dataset[7]


@pytest.mark.parametrize("name", DATASETS)
def test_missing_data_says_the_ways_out(tmp_path: Path, name: str) -> None:
    (tmp_path / "empty").mkdir()
    for split, place in itertools.product(SPLITS, ("empty", "absent")):
        says = [tmp_path / place] + ["embedded subset"] * (name == "mnist")
        says += ["`download=True`", PUBLISHED[name][1]] if name in PUBLISHED else []
        with refused("data_dir", *says, error=FileNotFoundError):
            load_dataset(name, split, tmp_path / place)


def test_arguments_are_checked() -> None:
    refuses(r"`data` must be one of mnist, .* got 'svhn'", load_dataset, "svhn", "train")
    refuses("`split` must be one of train, test, got 'valid'", load_dataset, "mnist", "valid")
    with pytest.raises(ValueError, match="`image_size` is for celeba and folder, got it for mnist"):
        load_dataset("mnist", "train", image_size=32)
    refuses("`download` needs `data_dir`", load_dataset, "mnist", "train", download=True)
    with pytest.raises(ValueError, match=r"`download` is for mnist, .* got 'folder'"):
        load_dataset("folder", "train", "absent", download=True)
    says = ("data_dir", "`download=True`")
    with refused("cifar10 needs the folder", *says, error=FileNotFoundError):
        load_dataset("cifar10", "train")


@pytest.mark.parametrize("failure", [URLError("no name"), RuntimeError("x:\ny"), TimeoutError()])
def test_a_failed_download_says_what_to_do(tmp_path, monkeypatch, failure: Exception) -> None:
    monkeypatch.setattr(torchvision.datasets, "CIFAR10", Mock(side_effect=failure))
    reason = " ".join(str(failure).split()) or "TimeoutError"
    says = (tmp_path, "data_dir", "https://www.cs.toronto.edu/~kriz/cifar.html", reason)
    with refused("could not download cifar10", *says, error=ConnectionError):
        load_dataset("cifar10", "train", tmp_path, download=True)
