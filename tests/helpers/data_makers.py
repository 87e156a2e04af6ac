"""Writers of tiny data sets in the published formats, and what errors must say, for tests."""

from __future__ import annotations

import gzip
import tarfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from dsmooth.data import ImageDataset

Bytes = NDArray[np.uint8]


def random_bytes(shape: tuple[int, ...], seed: int = 0) -> Bytes:
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


def random_dataset(
    n: int, size: int = 8, channels: int = 1, labels: torch.Tensor | None = None
) -> ImageDataset:
    images = torch.from_numpy(random_bytes((n, channels, size, size), seed=n))
    return ImageDataset(images, labels, "noise", "test", f"{n} images of noise")


def idx_bytes(array: Bytes) -> bytes:
    header = bytes((0, 0, 8, array.ndim)) + np.array(array.shape, ">u4").tobytes()
    return header + array.tobytes()


def write_mnist(
    folder: Path, n: int, split: str = "train", gz: bool = False
) -> tuple[Bytes, Bytes]:
    """Write n random 28 x 28 images and their labels as IDX files; return both arrays."""
    folder.mkdir(parents=True, exist_ok=True)
    images, labels = random_bytes((n, 28, 28)), random_bytes((n,), seed=1) % 10
    prefix = {"train": "train", "test": "t10k"}[split]
    for kind, array in (("images-idx3", images), ("labels-idx1", labels)):
        content = idx_bytes(array)
        path = folder / f"{prefix}-{kind}-ubyte{'.gz' if gz else ''}"
        path.write_bytes(gzip.compress(content) if gz else content)
    return images, labels


def cifar_binary(pixels: Bytes, labels: Bytes) -> bytes:
    """pixels (N, 3072), labels (N,): the content of a data_batch_*.bin."""
    return np.concatenate([labels[:, None], pixels], axis=1).tobytes()


def write_tar_gz(path: Path, members: Mapping[str, bytes]) -> None:
    folder = path.parent / f"{path.name}-members"
    with tarfile.open(path, "w:gz") as archive:
        for name, content in members.items():
            file = folder / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(content)
            archive.add(file, name)


def write_images(folder: Path, images: Mapping[str, Bytes]) -> None:
    """Write {file name: (H, W) or (H, W, 3 or 4)}; the suffix names the format."""
    from PIL import Image

    for name, pixels in images.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path)


@contextmanager
def refused(
    match: str, *parts: object, error: type[Exception] | tuple[type[Exception], ...] = ValueError
) -> Iterator[None]:
    """The block raises an error of one or two lines that has every part."""
    with pytest.raises(error, match=match) as caught:
        yield
    text = str(caught.value)
    assert len(text.splitlines()) <= 2, text
    for part in parts:
        assert str(part) in text, (part, text)
