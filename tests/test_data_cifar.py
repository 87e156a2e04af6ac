"""CIFAR-10: one data set in every form, and no pickle but the published ones."""

from __future__ import annotations

import hashlib
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
from torchvision.datasets import CIFAR10

from dsmooth.data import SPLITS, load_dataset
from tests.helpers.data_makers import cifar_binary, random_bytes, refused, write_tar_gz

pytestmark = pytest.mark.quick

PIXELS = random_bytes((12, 3072))
LABELS = np.arange(12, dtype=np.uint8) % 10
BATCHES = [f"data_batch_{i}" for i in range(1, 6)] + ["test_batch"]
PARTS = {name: slice(2 * i, 2 * i + 2) for i, name in enumerate(BATCHES)}


def binary_files() -> dict[str, bytes]:
    """Five training batches and a test batch of 2 images each, by name."""
    return {f"{n}.bin": cifar_binary(PIXELS[part], LABELS[part]) for n, part in PARTS.items()}


def python_files() -> dict[str, bytes]:
    """The same batches as pickles, and batches.meta."""
    batches = {
        name: pickle.dumps({"data": PIXELS[part], "labels": LABELS[part].tolist()}, 2)
        for name, part in PARTS.items()
    }
    return {**batches, "batches.meta": pickle.dumps({"label_names": list("abcdefghij")}, 2)}


def publish(monkeypatch: pytest.MonkeyPatch, files: dict[str, bytes]) -> None:
    """Let torchvision know these as the published files."""
    md5 = {name: hashlib.md5(content).hexdigest() for name, content in files.items()}
    monkeypatch.setattr(CIFAR10, "train_list", [[name, md5[name]] for name in BATCHES[:5]])
    monkeypatch.setattr(CIFAR10, "test_list", [["test_batch", md5["test_batch"]]])
    monkeypatch.setattr(CIFAR10, "meta", {**CIFAR10.meta, "md5": md5["batches.meta"]})


def write(folder: Path, files: dict[str, bytes]) -> None:
    folder.mkdir(exist_ok=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)


@pytest.mark.parametrize("kind", ["bin", "py"])
@pytest.mark.parametrize("layout", ["folder", "flat", "archive"])
def test_cifar10_is_the_same_in_every_form(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, layout: str
) -> None:
    files = binary_files() if kind == "bin" else python_files()
    inner = f"cifar-10-batches-{kind}"
    if kind == "py":
        publish(monkeypatch, files)
    if layout == "archive":
        place = tmp_path / f"cifar-10-{ {'bin': 'binary', 'py': 'python'}[kind] }.tar.gz"
        write_tar_gz(place, {f"{inner}/{name}": files[name] for name in reversed(files)})
        monkeypatch.setattr(CIFAR10, "tgz_md5", hashlib.md5(place.read_bytes()).hexdigest())
    else:
        place = tmp_path / inner if layout == "folder" else tmp_path
        write(place, files)
    train, test = (load_dataset("cifar10", split, tmp_path) for split in SPLITS)
    # R, G and B planes of 32 rows.
    assert np.array_equal(train.images.numpy(), PIXELS[:10].reshape(10, 3, 32, 32))
    assert np.array_equal(test.images.numpy(), PIXELS[10:].reshape(2, 3, 32, 32))
    assert train.images.is_contiguous()
    assert train.labels is not None
    assert test.labels is not None
    assert [*train.labels.tolist(), *test.labels.tolist()] == LABELS.tolist()
    assert (train.source, test.source) == (f"{place} (10 images)", f"{place} (2 images)")


def test_a_binary_training_set_may_lack_batches(tmp_path: Path) -> None:
    files = binary_files()
    write(tmp_path, {name: files[name] for name in ("data_batch_2.bin", "data_batch_5.bin")})
    train = load_dataset("cifar10", "train", tmp_path)
    assert train.source == f"{tmp_path} (4 images, 2 of 5 batches)"
    assert np.array_equal(train.images[2:].reshape(2, -1), PIXELS[8:10])
    write(tmp_path / "one", {"data_batch_1.bin": bytes(3073)})
    assert len(load_dataset("cifar10", "train", tmp_path / "one")) == 1


class _Mark:
    """Pickles as a call that makes a folder."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("damage", ["a batch", "the other split", "no meta", "a subset"])
def test_no_pickle_is_loaded_but_the_published(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: str
) -> None:
    """Nor any before all of them are checked."""
    files, mark = python_files(), tmp_path / "ran"
    hostile = pickle.dumps({"data": PIXELS, "labels": [_Mark(mark)]})
    files["data_batch_1"] = hostile  # published, but the rest is not
    publish(monkeypatch, files)
    if damage == "a batch":
        files["data_batch_1"] = hostile + b"."
    elif damage == "the other split":
        files["test_batch"] = hostile
    elif damage == "no meta":
        del files["data_batch_5"], files["batches.meta"]
    else:
        files = {"data_batch_1": hostile}
    folder = tmp_path / "cifar-10-batches-py"
    write(folder, files)
    with refused("no other pickles are read", folder, "binary form (data_batch_1.bin)"):
        load_dataset("cifar10", "train", tmp_path, download=True)
    assert not mark.exists()


def test_no_archive_of_pickles_is_unpacked_but_the_published(tmp_path: Path) -> None:
    path, mark = tmp_path / "cifar-10-python.tar.gz", tmp_path / "ran"
    hostile = pickle.dumps([_Mark(mark)])
    write_tar_gz(path, {f"cifar-10-batches-py/{name}": hostile for name in BATCHES})
    with refused("is not the published archive", path, "binary form (cifar-10-binary.tar.gz)"):
        load_dataset("cifar10", "test", tmp_path)
    assert not mark.exists()


def test_a_damaged_binary_batch_is_found(tmp_path: Path) -> None:
    path = tmp_path / "data_batch_1.bin"
    content = cifar_binary(PIXELS, LABELS)
    for damaged, parts in (
        (content[:-1], ("is cut", "multiple of 3073", f"found {len(content) - 1}")),
        (b"", ("found 0",)),
        (cifar_binary(PIXELS, LABELS + 90), ("labels 0 .. 9, found 90 .. 99",)),
        (bytes(10_001 * 3073), ("is too large", "at most 30730000")),
    ):
        path.write_bytes(damaged)
        with refused(r"data_batch_1\.bin", path, *parts):
            load_dataset("cifar10", "train", tmp_path)
