"""Data sets at large: bytes and floats, missing data, downloads, lazy imports."""

from __future__ import annotations

import itertools
from functools import partial
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

IMAGES = torch.from_numpy(random_bytes((7, 3, 4, 8)))
load = partial(load_dataset, split="train")
made = partial(ImageDataset, labels=None, name="folder", split="train", source="memory")


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


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: to_bytes(torch.tensor([0.0, torch.nan])), ValueError, "NaN, got 1 among 2"),
        (lambda: to_bytes(IMAGES), ValueError, "x must have a floating-point dtype, got torch.ui"),
        (lambda: to_bytes(IMAGES.numpy()), TypeError, "x must be a torch.Tensor, got a ndarray"),
        (lambda: to_float(IMAGES.float()), ValueError, "images must have dtype torch.uint8, got"),
        (lambda: to_float(IMAGES.numpy()), TypeError, "images must be a torch.Tensor, got a ndarr"),
        (lambda: made(IMAGES[:, :2]), ValueError, r"images must be uint8 .* got .*\(7, 2, 4, 8\)"),
        (lambda: made(IMAGES, labels=torch.arange(6)), ValueError, r"of shape \(7,\), .* \(6,\)"),
        (lambda: load_dataset("svhn", "train"), ValueError, "one of mnist, .* got 'svhn'"),
        (lambda: load_dataset("mnist", "valid"), ValueError, "one of train, test, got 'valid'"),
        (lambda: load_dataset("mnist", "all"), ValueError, "one of train, test, got 'all'"),
        (lambda: load("mnist", image_size=32), ValueError, "`image_size` is for celeba and fo"),
        (lambda: load("mnist", download=True), ValueError, "`download` needs `data_dir`"),
        (lambda: load("folder", download=True), ValueError, "`download` is for mnist, .* 'folder"),
        (lambda: load("cifar10"), FileNotFoundError, r"needs the folder(.|\n)*data_dir.*download"),
    ],
)
def test_what_has_no_meaning_is_refused(call, error: type[Exception], words: str) -> None:
    refuses(words, call, error=error)


def test_dataset_hands_out_what_it_holds() -> None:
    images, dataset = IMAGES, made(IMAGES, labels=torch.arange(7))
    assert (len(dataset), dataset.image_size, dataset.image_channels) == (7, (4, 8), 3)
    indices = torch.tensor([3, 0, 3])
    assert torch.equal(to_bytes(dataset.batch(indices)), images[indices])
    x, label = dataset[-1]
    assert torch.equal(x, to_float(images[6]))
    assert label == 6
    assert torch.equal(made(images)[3], to_float(images[3]))
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


@pytest.mark.parametrize("failure", [URLError("no name"), RuntimeError("x:\ny"), TimeoutError()])
def test_a_failed_download_says_what_to_do(tmp_path, monkeypatch, failure: Exception) -> None:
    monkeypatch.setattr(torchvision.datasets, "CIFAR10", Mock(side_effect=failure))
    reason = " ".join(str(failure).split()) or "TimeoutError"
    says = (tmp_path, "data_dir", "https://www.cs.toronto.edu/~kriz/cifar.html", reason)
    with refused("could not download cifar10", *says, error=ConnectionError):
        load_dataset("cifar10", "train", tmp_path, download=True)
