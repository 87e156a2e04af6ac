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

from dsmooth.data import SPLITS, load_dataset, mnist
from dsmooth.data.idx import read_idx
from dsmooth.data.published import published_md5
from tests.helpers.data_makers import assert_says, idx_bytes, random_bytes, write_mnist

pytestmark = pytest.mark.quick

_SUBSET_SHA256 = {
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
def test_embedded_subset_is_itself_and_balanced_at_every_prefix(split: str, n: int) -> None:
    dataset = load_dataset("mnist", split)
    assert dataset.labels is not None
    digests = (
        hashlib.sha256(dataset.images.numpy().tobytes()).hexdigest(),
        hashlib.sha256(dataset.labels.to(torch.uint8).numpy().tobytes()).hexdigest(),
    )
    assert digests == _SUBSET_SHA256[split]
    assert dataset.images.shape == (n, 1, 28, 28)
    counts = torch.nn.functional.one_hot(dataset.labels, 10).cumsum(0)
    assert int((counts.amax(1) - counts.amin(1)).max()) == 1
    assert counts[-1].tolist() == [n // 10] * 10
    assert dataset.source == f"embedded MNIST subset ({n:,} images)"


def test_embedded_splits_share_no_image() -> None:
    train, test = (load_dataset("mnist", split).images.flatten(1) for split in SPLITS)
    assert not {row.numpy().tobytes() for row in train} & {row.numpy().tobytes() for row in test}


def test_attribution_is_beside_the_subset() -> None:
    text = (mnist.SUBSET_PATH.parent / "ATTRIBUTION.md").read_text()
    for name in ("LeCun", "Cortes", "Burges", "Share Alike"):
        assert name in text


@given(
    shape=st.lists(st.integers(0, 5), min_size=1, max_size=3).map(tuple),
    gz=st.booleans(),
    cut=st.integers(0, 10**6),
)
@settings(max_examples=60, deadline=None)
def test_idx_is_read_back_and_any_cut_is_found(
    tmp_path_factory: pytest.TempPathFactory, shape: tuple[int, ...], gz: bool, cut: int
) -> None:
    array = random_bytes(shape)
    content = idx_bytes(array)
    path = tmp_path_factory.getbasetemp() / "array-idx"
    path.write_bytes(gzip.compress(content) if gz else content)
    assert np.array_equal(read_idx(path, len(shape)), array)

    short = content[: cut % len(content)]
    path.write_bytes(gzip.compress(short) if gz else short)
    with pytest.raises(ValueError, match="expected") as error:
        read_idx(path, len(shape))
    assert_says(error, path)
    if len(short) >= 4 + 4 * len(shape):
        assert_says(error, f"expected {len(content)} bytes, found {len(short)}")


def test_idx_errors_name_the_file_and_both_numbers(tmp_path: Path) -> None:
    path = tmp_path / "train-images-idx3-ubyte.gz"
    content = idx_bytes(random_bytes((3, 4, 4)))

    path.write_bytes(content + b"more")
    with pytest.raises(ValueError, match="too long") as error:
        read_idx(path, 3)
    assert_says(error, path, "3 x 4 x 4", "expected 64 bytes, found 68")

    path.write_bytes(gzip.compress(content)[:-30])  # a download that stopped
    with pytest.raises(ValueError, match="is cut") as error:
        read_idx(path, 3)
    assert_says(error, path, "expected 64 bytes, found ")

    damaged = bytearray(gzip.compress(content))
    damaged[-6] ^= 1  # in the checksum
    path.write_bytes(damaged)
    with pytest.raises(ValueError, match="damaged gzip") as error:
        read_idx(path, 3)
    assert_says(error, path)

    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"1 dimension\(s\)") as error:
        read_idx(path, 1)
    assert_says(error, path, "00000801", "00000803")

    path.write_bytes(bytes((0, 0, 8, 3)) + b"\xff" * 12)  # 2^96 bytes promised
    with pytest.raises(ValueError, match="is cut") as error:
        read_idx(path, 3)
    assert_says(error, (2**32 - 1) ** 3 + 16, "found 16")


@pytest.mark.parametrize("gz", [False, True])
@pytest.mark.parametrize(
    ("name", "inner"),
    [("mnist", "."), ("mnist", "MNIST/raw"), ("fashion-mnist", "FashionMNIST/raw")],
)
@pytest.mark.parametrize("split", SPLITS)
def test_idx_datasets_are_read_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, inner: str, gz: bool, split: str
) -> None:
    monkeypatch.setattr(mnist, "published_md5", lambda _: {})
    images, labels = write_mnist(tmp_path / inner, 5, split, gz)
    dataset = load_dataset(name, split, tmp_path)
    assert torch.equal(dataset.images, torch.from_numpy(images[:, None]))
    assert dataset.labels is not None
    assert dataset.labels.tolist() == labels.tolist()
    assert dataset.source == f"{tmp_path / inner} (5 images)"


def test_mnist_digest_is_that_of_the_file_and_a_difference_warns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images, _ = write_mnist(tmp_path, 5, gz=True)
    digest = hashlib.sha256(idx_bytes(images)).hexdigest()
    monkeypatch.setattr(mnist, "_MNIST_SHA256", {images.shape: digest})
    load_dataset("mnist", "train", tmp_path)  # warnings are errors here

    path = tmp_path / "train-images-idx3-ubyte.gz"
    images[4, 27, 27] ^= 1
    path.write_bytes(gzip.compress(idx_bytes(images)))
    with pytest.warns(UserWarning, match="not its content") as warned:
        dataset = load_dataset("mnist", "train", tmp_path)
    assert str(path) in str(warned[0].message)
    assert torch.equal(dataset.images[:, 0], torch.from_numpy(images))  # a user's own data is read


def test_fashion_mnist_is_checked_as_packed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_mnist(tmp_path, 5, gz=True)
    path = tmp_path / "train-images-idx3-ubyte.gz"
    published = {path.name: hashlib.md5(path.read_bytes()).hexdigest()}
    monkeypatch.setattr(mnist, "published_md5", lambda _: published)
    load_dataset("fashion-mnist", "train", tmp_path)
    published[path.name] = "0" * 32
    with pytest.warns(UserWarning, match="not the published file"):
        load_dataset("fashion-mnist", "train", tmp_path)


def test_published_checksums_cover_every_file() -> None:
    batches = {f"data_batch_{i}" for i in range(1, 6)} | {"test_batch"}
    assert set(published_md5("CIFAR10")) == batches
    fashion = published_md5("FashionMNIST")
    assert set(fashion) == {
        f"{prefix}-{kind}-ubyte.gz"
        for prefix in ("train", "t10k")
        for kind in ("images-idx3", "labels-idx1")
    }
    for digest in (*published_md5("CIFAR10").values(), *fashion.values()):
        assert len(bytes.fromhex(digest)) == 16


def test_labels_must_match_images(tmp_path: Path) -> None:
    write_mnist(tmp_path, 5)
    labels = tmp_path / "train-labels-idx1-ubyte"
    labels.write_bytes(idx_bytes(random_bytes((4,))))
    with pytest.raises(ValueError, match="one label per image") as error:
        load_dataset("mnist", "train", tmp_path)
    assert_says(error, labels, "expected 5, found 4")
