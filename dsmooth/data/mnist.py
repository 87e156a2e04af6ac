"""MNIST and Fashion-MNIST from their IDX files, and the subset of MNIST inside the package."""

from __future__ import annotations

import hashlib
import warnings
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from dsmooth.data.dataset import ImageDataset
from dsmooth.data.guard import Refused, md5_of, shown
from dsmooth.data.idx import read_idx
from dsmooth.data.npz import read_npz
from dsmooth.data.published import published_md5

SUBSET_PATH = Path(__file__).with_name("mnist_subset.npz")

_PREFIXES = {"train": "train", "test": "t10k"}
_FOLDERS = {"mnist": "MNIST/raw", "fashion-mnist": "FashionMNIST/raw"}  # torchvision's layout
_MAX_SUBSET_BYTES = 1 << 24  # of an array; the largest has 3.9 MB
# By the shape of the array; of the file without compression, header included.
_MNIST_SHA256 = {
    (60000, 28, 28): "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
    (60000,): "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
    (10000, 28, 28): "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
    (10000,): "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
}


def load_embedded_mnist(split: str) -> ImageDataset:
    """Return the subset inside the package: 5,000 images for "train", 1,000 for "test", labelled.

    The images stand in rounds of one of each digit, so any prefix is balanced to one image.
    ATTRIBUTION.md, beside the file, names the authors of MNIST and the licence.
    """
    names = f"{split}_images", f"{split}_labels"
    arrays = read_npz(SUBSET_PATH, names, _MAX_SUBSET_BYTES)
    images, labels = (arrays[name] for name in names)
    if images.dtype != np.uint8 or images.ndim != 3 or labels.shape != images.shape[:1]:
        raise Refused(
            f"{shown(SUBSET_PATH)} must hold bytes (N, H, W) and labels (N,), found "
            f"{images.dtype} {images.shape} and {labels.dtype} {labels.shape}"
        )
    return _dataset(
        images, labels, "mnist", split, f"embedded MNIST subset ({len(images):,} images)"
    )


def load_idx_dataset(name: str, split: str, data_dir: Path) -> ImageDataset:
    """Return MNIST or Fashion-MNIST, or data of the same form, from the IDX files in `data_dir`.

    The files, gzipped or not, may lie in `data_dir` itself or as torchvision lays them out.
    Raises FileNotFoundError for a missing file and ValueError for one that is cut or of another
    kind. Files of MNIST's own size are checked against its sha256, gzipped ones of Fashion-MNIST
    against the MD5 that torchvision lists, if that is installed. A difference only warns: several
    data sets share these names and sizes, and gzip's own checksum finds damage.
    """
    images, labels, folder = read_idx_arrays(name, split, data_dir)
    return _dataset(images, labels, name, split, f"{shown(folder)} ({len(images):,} images)")


def read_idx_arrays(
    name: str, split: str, data_dir: Path
) -> tuple[NDArray[np.uint8], NDArray[np.uint8], Path]:
    """Return images (N, H, W), labels (N,) and the folder in which the files were found."""
    images_path = _find(name, f"{_PREFIXES[split]}-images", 3, data_dir)
    labels_path = _find(name, f"{_PREFIXES[split]}-labels", 1, data_dir)
    images, labels = read_idx(images_path, 3), read_idx(labels_path, 1)
    if 0 in images.shape:
        raise Refused(f"{shown(images_path)} must hold images, found shape {images.shape}")
    if len(images) != len(labels):
        raise Refused(
            f"{shown(labels_path)} must hold one label per image of {images_path.name}: expected "
            f"{len(images)}, found {len(labels)}"
        )
    for path, array in ((images_path, images), (labels_path, labels)):
        if name == "mnist":
            _warn_unless_mnist(path, array)
        elif path.suffix == ".gz":
            _warn_unless_fashion_mnist(path)
    return images, labels, images_path.parent


def _find(name: str, stem: str, ndim: int, data_dir: Path) -> Path:
    folders = (data_dir, data_dir / _FOLDERS[name])
    for folder in folders:
        for joint in "-.":  # some copies write train-images.idx3-ubyte
            for suffix in ("", ".gz"):
                path = folder / f"{stem}{joint}idx{ndim}-ubyte{suffix}"
                if path.is_file():
                    return path
    embedded = ", or leave out --data-dir to use the embedded subset" if name == "mnist" else ""
    raise FileNotFoundError(
        f"{stem}-idx{ndim}-ubyte (or .gz) is neither in {folders[0]} nor in {folders[1]}.\n"
        f"Point --data-dir to the folder of {name}'s IDX files, or fetch them with --download"
        f"{embedded}."
    )


def _warn_unless_mnist(path: Path, array: NDArray[np.uint8]) -> None:
    expected = _MNIST_SHA256.get(array.shape)
    if expected is None:
        return  # a user's own data, or a part of MNIST
    digest = hashlib.sha256(bytes((0, 0, 8, array.ndim)))
    digest.update(np.array(array.shape, ">u4").tobytes())
    digest.update(np.ascontiguousarray(array).data)
    if digest.hexdigest() != expected:
        warnings.warn(
            f"{path} has the size of MNIST's file but not its content (sha256 "
            f"{digest.hexdigest()[:16]}..., expected {expected[:16]}...): another data set, or "
            "damaged",
            stacklevel=2,
        )


def _warn_unless_fashion_mnist(path: Path) -> None:
    """Check a compressed file: these are the ones of which torchvision lists the MD5."""
    expected = published_md5("FashionMNIST").get(path.name)
    if expected is None:
        return
    found = md5_of(path)
    if expected != found:
        warnings.warn(
            f"{path} is not the published file (MD5 {found}, expected {expected}): packed anew, "
            "or another data set",
            stacklevel=2,
        )


def _dataset(
    images: NDArray[np.uint8], labels: NDArray[np.uint8], name: str, split: str, source: str
) -> ImageDataset:
    return ImageDataset(
        images=torch.from_numpy(images).unsqueeze(1),
        labels=torch.from_numpy(labels.astype(np.int64)),
        name=name,
        split=split,
        source=source,
    )
