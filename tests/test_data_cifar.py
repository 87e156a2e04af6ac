"""CIFAR-10: one data set in every form, and a pickle that can run nothing."""

from __future__ import annotations

import hashlib
import os
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dsmooth.data import SPLITS, cifar, load_dataset
from tests.helpers.data_makers import (
    assert_says,
    cifar_binary,
    cifar_pickle,
    random_bytes,
    write_tar_gz,
)

pytestmark = pytest.mark.quick

_PIXELS = random_bytes((6, 3072))
_LABELS = np.arange(6, dtype=np.uint8) + 4


def cifar_files(kind: str) -> dict[str, bytes]:
    """Two training batches of 3 and 2 images and a test batch of 1, by path."""
    write = cifar_binary if kind == "bin" else cifar_pickle
    suffix = ".bin" if kind == "bin" else ""
    parts = {"data_batch_1": slice(0, 3), "data_batch_2": slice(3, 5), "test_batch": slice(5, 6)}
    return {
        f"cifar-10-batches-{kind}/{name}{suffix}": write(_PIXELS[part], _LABELS[part])
        for name, part in parts.items()
    }


@pytest.mark.parametrize("kind", ["bin", "py"])
@pytest.mark.parametrize("layout", ["folder", "flat", "archive"])
def test_cifar10_is_the_same_in_every_form(tmp_path: Path, kind: str, layout: str) -> None:
    files = cifar_files(kind)
    place = tmp_path
    if layout == "archive":
        place = tmp_path / f"cifar-10-{ {'bin': 'binary', 'py': 'python'}[kind] }.tar.gz"
        write_tar_gz(place, {"cifar-10-batches-meta": b"", **dict(reversed(files.items()))})
    else:
        place = tmp_path / f"cifar-10-batches-{kind}" if layout == "folder" else tmp_path
        place.mkdir(exist_ok=True)
        for name, content in files.items():
            (place / Path(name).name).write_bytes(content)
    train, test = (load_dataset("cifar10", split, tmp_path) for split in SPLITS)
    # R, G and B planes of 32 rows.
    assert np.array_equal(train.images.numpy(), _PIXELS[:5].reshape(5, 3, 32, 32))
    assert np.array_equal(test.images.numpy(), _PIXELS[5:].reshape(1, 3, 32, 32))
    assert train.labels is not None
    assert train.labels.tolist() == _LABELS[:5].tolist()
    assert train.source == f"{place} (5 images, 2 of 5 batches)"
    assert test.source == f"{place} (1 images)"


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("encode", [str, str.encode])
def test_cifar_archives_written_anew_by_python_3(protocol: int, encode: object) -> None:
    assert callable(encode)
    archive = {encode("data"): _PIXELS, encode("labels"): _LABELS.tolist()}
    pixels, labels = cifar.read_cifar_pickle("x", pickle.dumps(archive, protocol))
    assert np.array_equal(pixels, _PIXELS)
    assert labels.tolist() == _LABELS.tolist()


class _Call:
    """Pickles as a call of `function`."""

    def __init__(self, function: object, *arguments: object) -> None:
        self._reduced = (function, arguments)

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return self._reduced


def test_a_pickle_can_run_nothing(tmp_path: Path) -> None:
    marker = tmp_path / "ran"
    command = f"{sys.executable} -c 'open({str(marker)!r}, \"w\")'"
    attacks: list[_Call] = [
        _Call(os.system, command),
        _Call(subprocess.getoutput, command),
        _Call(eval, f"open({str(marker)!r}, 'w')"),
        _Call(open, str(marker), "w"),
        _Call(np.save, str(marker), [1]),
        _Call(getattr, "text", "format"),
        _Call(torch.save, [1], str(marker)),
    ]
    for attack in attacks:
        for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
            for content in (attack, {"data": _PIXELS, "labels": [attack]}):
                with pytest.raises(ValueError, match="no CIFAR-10 archive needs") as error:
                    cifar.read_cifar_pickle("data_batch_1", pickle.dumps(content, protocol))
                assert_says(error, "data_batch_1", "it asks for ")
    # Attributes of what is admitted are not admitted: protocol 4 looks up dotted names.
    dotted = b"\x80\x04\x8c\x05numpy\x8c\x0endarray.tofile\x93."
    with pytest.raises(ValueError, match=r"asks for numpy\.ndarray\.tofile"):
        cifar.read_cifar_pickle("data_batch_1", dotted)
    assert not marker.exists()


@pytest.mark.parametrize(
    ("archive", "parts"),
    [
        ([1, 2], ("must hold a dictionary, found list",)),
        ({"labels": [1]}, ("'data'", "found nothing")),
        ({"data": np.zeros((2, 3072))}, ("'data'", "found float64 (2, 3072)")),
        ({"data": np.zeros((2, 3071), np.uint8)}, ("(N, 3072)", "found (2, 3071)")),
        ({"data": np.zeros((2, 3072), np.uint8), "labels": [1]}, ("list of 2", "found list of 1")),
        (
            {"data": np.zeros((2, 3072), np.uint8), "labels": [1, 10]},
            ("labels 0 .. 9", "found 1 .. 10"),
        ),
        (
            {"data": np.zeros((2, 3072), np.uint8), "labels": ["cat", "dog"]},
            ("labels 0 .. 9", "found str"),
        ),
    ],
)
def test_other_archives_are_refused(archive: object, parts: tuple[str, ...]) -> None:
    with pytest.raises(ValueError, match=r"must|expected") as error:
        cifar.read_cifar_pickle("data_batch_1", pickle.dumps(archive, 4))
    assert_says(error, "data_batch_1", *parts)


@given(st.integers(0, 10**6))
@settings(max_examples=40, deadline=None)
def test_a_cut_archive_is_found(cut: int) -> None:
    content = cifar_pickle(_PIXELS, _LABELS)
    with pytest.raises(ValueError, match="cannot be read as a CIFAR-10 Python archive") as error:
        cifar.read_cifar_pickle("data_batch_1", content[: cut % len(content)])
    assert_says(error, "data_batch_1")


def test_a_cut_binary_batch_is_found(tmp_path: Path) -> None:
    path = tmp_path / "data_batch_1.bin"
    content = cifar_binary(_PIXELS, _LABELS)
    path.write_bytes(content[:-1])
    with pytest.raises(ValueError, match="is cut") as error:
        load_dataset("cifar10", "train", tmp_path)
    assert_says(error, path, "multiple of 3073", f"found {len(content) - 1}")
    path.write_bytes(b"")
    with pytest.raises(ValueError, match="found 0"):
        load_dataset("cifar10", "train", tmp_path)
    path.write_bytes(cifar_binary(_PIXELS, _LABELS + 90))
    with pytest.raises(ValueError, match=r"labels 0 .. 9, found 94 .. 99") as error:
        load_dataset("cifar10", "train", tmp_path)
    assert_says(error, path)


def test_a_cut_tar_is_found(tmp_path: Path) -> None:
    path = tmp_path / "cifar-10-binary.tar.gz"
    write_tar_gz(path, cifar_files("bin"))
    whole = path.read_bytes()
    for content in (whole[: len(whole) // 2], b"not a tar", b""):
        path.write_bytes(content)
        with pytest.raises(ValueError, match="is cut or damaged") as error:
            load_dataset("cifar10", "test", tmp_path)
        assert_says(error, path)
    write_tar_gz(path, {"readme": b""})
    with pytest.raises(ValueError, match="found no batch") as error:
        load_dataset("cifar10", "test", tmp_path)
    assert_says(error, path, "cifar-10-batches-bin/test_batch.bin")


def test_full_archives_are_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    content = cifar_pickle(_PIXELS, _LABELS)
    monkeypatch.setattr(cifar, "_FULL_BATCH", len(_PIXELS))
    published = {"test_batch": hashlib.md5(content).hexdigest()}
    monkeypatch.setattr(cifar, "published_md5", lambda _: published)
    cifar.read_cifar_pickle("folder/test_batch", content)
    published["test_batch"] = "0" * 32
    with pytest.warns(UserWarning, match="folder/test_batch is not the published file"):
        cifar.read_cifar_pickle("folder/test_batch", content)
