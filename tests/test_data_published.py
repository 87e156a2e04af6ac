"""Data sets of others: the packaged subset is itself, torchvision's reading is handed on."""

from __future__ import annotations

import hashlib
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from torchvision.datasets import CIFAR10, CelebA

from dsmooth.data import SPLITS, load_dataset, published
from tests.helpers.data_makers import random_bytes, refused, write_images, write_mnist

pytestmark = pytest.mark.quick

SUBSET_SHA256 = {
    "train": (
        "4b81f51b4c1dab2ffda842261a37aaac70a8be1f968dfcdd8bf2826e04112817",
        "3649869501b3e35a976ee7a575754e9f6dd449cefb0fd17e198c46a2dfa0d765",
    ),
    "test": (
        "9619a2c44272cd5ee66bf0c1953c411f657eb1a3fd4b5ce0692ffa6e97c219a3",
        "83532b4dc383fd71cf80ef2f4c93236028297441949bf085bc60afdd7c55f692",
    ),
}


@pytest.mark.parametrize(("split", "n"), [("train", 5000), ("test", 1000)])
def test_embedded_subset_is_itself(split: str, n: int) -> None:
    dataset = load_dataset("mnist", split)
    digests = (
        hashlib.sha256(dataset.images.numpy().tobytes()).hexdigest(),
        hashlib.sha256(dataset.labels.to(torch.uint8).numpy().tobytes()).hexdigest(),
    )
    assert digests == SUBSET_SHA256[split]
    assert dataset.images.shape == (n, 1, 28, 28)
    assert dataset.source == f"embedded MNIST subset ({n:,} images)"


def test_attribution_is_beside_the_subset() -> None:
    text = (published.SUBSET_PATH.parent / "ATTRIBUTION.md").read_text()
    for name in ("LeCun", "Cortes", "Burges", "Share Alike"):
        assert name in text


@pytest.mark.parametrize(("name", "root"), [("mnist", "MNIST"), ("fashion-mnist", "FashionMNIST")])
def test_idx_datasets_are_read_back(tmp_path: Path, name: str, root: str) -> None:
    images, labels = write_mnist(tmp_path, 5, 3, root)
    train, test = (load_dataset(name, split, tmp_path, download=True) for split in SPLITS)
    assert torch.equal(torch.cat([train.images, test.images])[:, 0], torch.from_numpy(images))
    assert [*train.labels.tolist(), *test.labels.tolist()] == labels.tolist()
    assert train.source == f"{tmp_path} (5 images)"
    path = tmp_path / root / "raw" / "train-images-idx3-ubyte"
    os.truncate(path, 100)
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
