"""MNIST and Fashion-MNIST from their IDX files, and the subset of MNIST inside the package.

The IDX format (http://yann.lecun.com/exdb/mnist): two zero bytes, the element type (8: unsigned
byte), the number of dimensions, each dimension as a big-endian 32-bit integer, the elements in C
order. A file may be gzipped.
"""

from __future__ import annotations

import gzip
import hashlib
import itertools
import math
import warnings
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..files import open_regular, printable
from .dataset import ImageDataset, from_arrays
from .reading import InvalidFile, check_size, guarded, missing, read_npz

SUBSET_PATH = Path(__file__).with_name("mnist_subset.npz")

_MAX_IDX_BYTES = 1 << 30  # the largest file of this family, EMNIST by class, has 0.51 GiB
_PREFIXES = {"train": "train", "test": "t10k"}
_FOLDERS = {"mnist": "MNIST/raw", "fashion-mnist": "FashionMNIST/raw"}  # torchvision's layout
# By the shape of the array; of the file without compression, header included.
_MNIST_SHA256 = {
    (60000, 28, 28): "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
    (60000,): "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
    (10000, 28, 28): "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
    (10000,): "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
}


def load_embedded_mnist(split: str) -> ImageDataset:
    """The subset in the package, in rounds of one of each digit: any prefix is balanced."""
    images, labels = read_npz(SUBSET_PATH, (f"{split}_images", f"{split}_labels")).values()
    source = f"embedded MNIST subset ({len(images):,} images)"
    return from_arrays(images[:, None], labels, "mnist", split, source)


def load_idx_dataset(name: str, split: str, data_dir: Path) -> ImageDataset:
    """MNIST or Fashion-MNIST, or data of the same form, from the IDX files in `data_dir`."""
    images_path = _find(name, f"{_PREFIXES[split]}-images", 3, data_dir)
    labels_path = _find(name, f"{_PREFIXES[split]}-labels", 1, data_dir)
    images, labels = read_idx(images_path, 3), read_idx(labels_path, 1)
    if 0 in images.shape:
        raise InvalidFile(f"{printable(images_path)} must hold images, found shape {images.shape}")
    if len(images) != len(labels):
        raise InvalidFile(
            f"{printable(labels_path)} must hold one label per image of {images_path.name}: "
            f"expected {len(images)}, found {len(labels)}"
        )
    # A difference only warns: several data sets share these names and sizes.
    for path, array in ((images_path, images), (labels_path, labels)):
        if not _is_published(name, path, array):
            warnings.warn(
                f"{printable(path)} has the name and size of a published file but not its "
                "content: another data set, packed anew, or damaged",
                stacklevel=2,
            )
    source = f"{printable(images_path.parent)} ({len(images):,} images)"
    return from_arrays(images[:, None], labels, name, split, source)


def read_idx(path: Path, ndim: int) -> NDArray[np.uint8]:
    """The array of `ndim` dimensions in an IDX file, gzipped or not, as its header promises."""
    with open_regular(path) as file, guarded(path, "an IDX file"):
        packed = file.read(2) == b"\x1f\x8b"
        file.seek(0)
        stream = gzip.GzipFile(fileobj=file) if packed else file
        expected, magic = bytes((0, 0, 8, ndim)), stream.read(4)
        if magic != expected:
            raise InvalidFile(
                f"{printable(path)} is not an IDX file of unsigned bytes with {ndim} "
                f"dimension(s): expected its first bytes to be {expected.hex()}, found "
                f"{magic.hex() or 'an empty file'}"
            )
        shape = np.frombuffer(stream.read(4 * ndim), ">u4", ndim).tolist()
        size = math.prod(shape)
        check_size(path, size, _MAX_IDX_BYTES)
        content = bytearray(stream.read(size))
        if len(content) < size or stream.read(1):  # at the end gzip compares the CRC-32
            fault, found = ("cut", len(content)) if len(content) < size else ("too long", "more")
            raise InvalidFile(
                f"{printable(path)} is {fault}: its header promises "
                f"{' x '.join(map(str, shape))} = {size} bytes, found {found}; fetch it again"
            )
    return np.frombuffer(content, np.uint8).reshape(shape)


def _find(name: str, stem: str, ndim: int, data_dir: Path) -> Path:
    folders = (data_dir, data_dir / _FOLDERS[name])
    # Some copies write train-images.idx3-ubyte.
    for folder, joint, suffix in itertools.product(folders, "-.", ("", ".gz")):
        path = folder / f"{stem}{joint}idx{ndim}-ubyte{suffix}"
        if path.is_file():
            return path
    raise missing(
        name, f"{stem}-idx{ndim}-ubyte (or .gz) is neither in {' nor in '.join(map(str, folders))}"
    )


def _is_published(name: str, path: Path, array: NDArray[np.uint8]) -> bool:
    """Whether a file has the published content, as far as its checksum is known."""
    if name == "mnist":
        expected = _MNIST_SHA256.get(array.shape)
        digest = hashlib.sha256(bytes((0, 0, 8, array.ndim)))
        digest.update(np.array(array.shape, ">u4").tobytes())
        digest.update(array.data)
        return expected in (None, digest.hexdigest())
    if path.suffix != ".gz":
        return True
    from torchvision.datasets import FashionMNIST
    from torchvision.datasets.utils import check_integrity

    return bool(check_integrity(path, dict(FashionMNIST.resources).get(path.name)))
