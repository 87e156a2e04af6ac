"""Data sets at large: bytes and floats, missing data, the packaged subset, published files."""

from __future__ import annotations

import hashlib
import itertools
import os
import pickle
from functools import partial
from pathlib import Path
from unittest.mock import Mock
from urllib.error import URLError

import numpy as np
import pytest
import torch
import torchvision
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.datasets import CIFAR10, CelebA

from dsmooth.data import DATASETS, SPLITS, ImageDataset, load_dataset, to_bytes, to_float
from dsmooth.data.published import PUBLISHED, SUBSET_PATH
from tests.helpers.data_makers import random_bytes, refused, refuses, write_images

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
    for other in {max(0, level - 1), min(255, level + 1)}:
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


SUBSET_DIGESTS = {
    "train": "596c75ad54d93fb53c44cd48bc1b982a86d35531d524fc49d6cb11e637f3319f",
    "test": "7ac047a0c9c563eccc668baee0dfa0dfecd866c22a8f159041e11063569085e7",
}


@pytest.mark.parametrize(("split", "n"), [("train", 5000), ("test", 1000)])
def test_embedded_subset_is_itself(split: str, n: int) -> None:
    dataset = load_dataset("mnist", split)
    assert dataset.digest == SUBSET_DIGESTS[split]
    assert dataset.images.shape == (n, 1, 28, 28)
    assert dataset.source == f"embedded MNIST subset ({n:,} images)"
    text = (SUBSET_PATH.parent / "ATTRIBUTION.md").read_text()
    assert all(name in text for name in ("LeCun", "Cortes", "Burges", "Share Alike"))


@pytest.mark.parametrize(("name", "root"), [("mnist", "MNIST"), ("fashion-mnist", "FashionMNIST")])
def test_idx_datasets_are_read_back(tmp_path: Path, name: str, root: str) -> None:
    images, labels = random_bytes((8, 28, 28)), random_bytes((8,), 1) % 10
    raw = tmp_path / root / "raw"
    raw.mkdir(parents=True)
    for prefix, part in (("train", slice(5)), ("t10k", slice(5, None))):
        for kind, array in (("images-idx3", images[part]), ("labels-idx1", labels[part])):
            header = bytes((0, 0, 8, array.ndim)) + np.array(array.shape, ">u4").tobytes()
            (raw / f"{prefix}-{kind}-ubyte").write_bytes(header + array.tobytes())
    train, test = (load_dataset(name, split, tmp_path, download=True) for split in SPLITS)
    assert torch.equal(torch.cat([train.images, test.images])[:, 0], torch.from_numpy(images))
    assert [*train.labels.tolist(), *test.labels.tolist()] == labels.tolist()
    assert train.source == f"{tmp_path} (5 images)"
    os.truncate(raw / "train-images-idx3-ubyte", 100)
    with refused(f"{root}/raw with its four files", tmp_path, "84", error=FileNotFoundError):
        load_dataset(name, "train", tmp_path)


def test_cifar10_is_read_if_it_is_the_published(tmp_path, monkeypatch) -> None:
    pixels, mark = random_bytes((12, 3072)), tmp_path / "ran"
    (tmp_path / CIFAR10.base_folder).mkdir()
    batches: list[list[str]] = []
    for i, name in enumerate([f"data_batch_{i}" for i in range(1, 6)] + ["test_batch"]):
        batch = {"data": pixels[2 * i : 2 * i + 2], "labels": [i, 9]}
        (path := tmp_path / CIFAR10.base_folder / name).write_bytes(pickle.dumps(batch))
        batches.append([name, hashlib.md5(path.read_bytes()).hexdigest()])
    (path.with_name("batches.meta")).write_bytes(pickle.dumps({"label_names": []}))
    monkeypatch.setattr(CIFAR10, "train_list", batches[:5])
    monkeypatch.setattr(CIFAR10, "test_list", batches[5:])
    monkeypatch.setattr(CIFAR10, "meta", {**CIFAR10.meta, "md5": None})
    train, test = (load_dataset("cifar10", split, tmp_path) for split in SPLITS)
    # R, G and B planes of 32 rows.
    both = torch.cat([train.images, test.images])
    assert np.array_equal(both.numpy(), pixels.reshape(12, 3, 32, 32))
    assert train.images.is_contiguous()
    assert train.labels.tolist() == [0, 9, 1, 9, 2, 9, 3, 9, 4, 9]

    path.write_bytes(f"cos\nmkdir\n(S'{mark}'\ntR.".encode())  # would make the folder
    with refused("cifar-10-batches-py with the published batches", error=FileNotFoundError):
        load_dataset("cifar10", "test", tmp_path)
    assert not mark.exists()


def test_celeba_is_cropped_to_140_in_the_official_split(tmp_path, monkeypatch) -> None:
    frames = [random_bytes((218, 178, 3), seed) for seed in range(5)]
    frames[0][39:179, 19:159] = (10, 20, 30)  # the centre; the noise around it must not be seen
    leaves = [f"{i}.png" for i in range(5)]
    root = tmp_path / CelebA.base_folder
    write_images(root / "img_align_celeba", dict(zip(leaves, frames, strict=True)))
    for _, _, leaf in CelebA.file_list[1:]:
        header = "5\nnames\n" * leaf.startswith(("list_attr", "list_bbox", "list_land"))
        lines = [f"{name} {part}\n" for name, part in zip(leaves, (0, 1, 2, 0, 2), strict=True)]
        (root / leaf).write_text(header + "".join(lines))
    monkeypatch.setattr(CelebA, "file_list", [(*one[:1], None, one[2]) for one in CelebA.file_list])

    train, test = (load_dataset("celeba", split, tmp_path, image_size=140) for split in SPLITS)
    centres = [frame[39:179, 19:159].transpose(2, 0, 1) for frame in frames]
    assert np.array_equal(train.images, np.stack([centres[0], centres[3]]))
    assert np.array_equal(test.images, np.stack([centres[2], centres[4]]))
    assert train.labels is None
    small = load_dataset("celeba", "train", tmp_path).images
    flat = torch.tensor([10, 20, 30])[:, None, None].expand(3, 32, 32)
    assert torch.equal(small[0], flat)
    # A widened triangle filter of a 140 / 32 pixels' radius keeps the mean of the image.
    noise, whole = small[1].double(), train.images[1].double()
    assert abs(noise.mean() - whole.mean()) < 2
    assert noise.std() < 0.4 * whole.std()  # nearest or unwidened would keep it

    write_images(root / "img_align_celeba", {"2.png": random_bytes((139, 200, 3))})
    with refused("at least 140 x 140", root / "img_align_celeba" / "2.png", "got 139 x 200"):
        load_dataset("celeba", "test", tmp_path)
