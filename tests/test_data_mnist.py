"""MNIST and Fashion-MNIST: IDX files are read back, damage is found, the subset is itself."""

from __future__ import annotations

import gzip
import hashlib
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.datasets import FashionMNIST

from dsmooth.data import SPLITS, load_dataset, mnist
from tests.helpers.data_makers import idx_bytes, random_bytes, refused, write_mnist

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
    assert dataset.labels is not None
    digests = (
        hashlib.sha256(dataset.images.numpy().tobytes()).hexdigest(),
        hashlib.sha256(dataset.labels.to(torch.uint8).numpy().tobytes()).hexdigest(),
    )
    assert digests == SUBSET_SHA256[split]
    assert dataset.images.shape == (n, 1, 28, 28)
    assert dataset.source == f"embedded MNIST subset ({n:,} images)"


def test_attribution_is_beside_the_subset() -> None:
    text = (mnist.SUBSET_PATH.parent / "ATTRIBUTION.md").read_text()
    for name in ("LeCun", "Cortes", "Burges", "Share Alike"):
        assert name in text


@given(shape=st.lists(st.integers(0, 5), min_size=1, max_size=3).map(tuple), gz=st.booleans())
@settings(max_examples=30, deadline=None)
def test_idx_is_read_back(
    tmp_path_factory: pytest.TempPathFactory, shape: tuple[int, ...], gz: bool
) -> None:
    array = random_bytes(shape)
    path = tmp_path_factory.getbasetemp() / "array-idx"
    path.write_bytes(gzip.compress(idx_bytes(array)) if gz else idx_bytes(array))
    assert np.array_equal(mnist.read_idx(path, len(shape)), array)


def test_damaged_idx_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "train-images-idx3-ubyte.gz"
    content = idx_bytes(random_bytes((3, 4, 4)))
    packed = gzip.compress(content)
    wrong_checksum = packed[:-6] + bytes((packed[-6] ^ 1,)) + packed[-5:]
    for damaged, parts in (
        (content[:-1], ("is cut", "3 x 4 x 4 = 48 bytes, found 47")),
        (content + b"x", ("is too long", "3 x 4 x 4 = 48 bytes, found more")),
        (gzip.compress(content + bytes(1 << 20)), ("is too long", "found more")),
        (packed[:-30], ("cannot be read as an IDX file",)),  # a download that stopped
        (wrong_checksum, ("cannot be read as an IDX file", "CRC")),
        (idx_bytes(random_bytes((9,))), ("3 dimension(s)", "00000803", "00000801")),
        (gzip.compress(b"") * 1000, ("an empty file",)),
        (bytes((0, 0, 8, 3)) + b"\xff" * 12, ("too large", "1073741824", (2**32 - 1) ** 3)),
        (idx_bytes(random_bytes((5, 0, 0))), ("must hold images",)),
    ):
        write_mnist(tmp_path, 5, gz=True)
        path.write_bytes(damaged)
        with refused("idx3", path, *parts):
            load_dataset("mnist", "train", tmp_path)


@pytest.mark.grid
@pytest.mark.parametrize("gz", [False, True])
@pytest.mark.parametrize(
    ("name", "inner"),
    [("mnist", "."), ("mnist", "MNIST/raw"), ("fashion-mnist", "FashionMNIST/raw")],
)
@pytest.mark.parametrize("split", SPLITS)
def test_idx_datasets_are_read_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, inner: str, gz: bool, split: str
) -> None:
    monkeypatch.setattr(FashionMNIST, "resources", [])
    images, labels = write_mnist(tmp_path / inner, 5, split, gz)
    dataset = load_dataset(name, split, tmp_path)
    assert torch.equal(dataset.images, torch.from_numpy(images[:, None]))
    assert dataset.labels is not None
    assert dataset.labels.tolist() == labels.tolist()
    assert dataset.source == f"{tmp_path / inner} (5 images)"


def test_a_difference_from_the_published_files_only_warns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """MNIST is known by its content, Fashion-MNIST by its packed files."""
    images, _ = write_mnist(tmp_path, 5, gz=True)
    path = tmp_path / "train-images-idx3-ubyte.gz"
    sha256 = hashlib.sha256(idx_bytes(images)).hexdigest()
    monkeypatch.setattr(mnist, "_MNIST_SHA256", {images.shape: sha256})
    md5 = hashlib.md5(path.read_bytes()).hexdigest()
    monkeypatch.setattr(FashionMNIST, "resources", [(path.name, md5)])
    for name in ("mnist", "fashion-mnist"):
        load_dataset(name, "train", tmp_path)  # warnings are errors here
    images[4, 27, 27] ^= 1
    path.write_bytes(gzip.compress(idx_bytes(images)))
    for name in ("mnist", "fashion-mnist"):
        with pytest.warns(UserWarning, match="of a published file but not its content") as warned:
            dataset = load_dataset(name, "train", tmp_path)
        assert str(path) in str(warned[0].message)
        assert torch.equal(dataset.images[:, 0], torch.from_numpy(images))


def test_labels_must_match_images(tmp_path: Path) -> None:
    write_mnist(tmp_path, 5)
    labels = tmp_path / "train-labels-idx1-ubyte"
    labels.write_bytes(idx_bytes(random_bytes((4,))))
    with refused("one label per image", labels, "expected 5, found 4"):
        load_dataset("mnist", "train", tmp_path)
