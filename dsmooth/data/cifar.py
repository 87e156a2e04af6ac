"""CIFAR-10 from its binary files, its Python files, or either one's .tar.gz.

The binary form (https://www.cs.toronto.edu/~kriz/cifar.html): a record is one label byte and 3,072
pixel bytes, the planes R, G, B of 32 x 32, row after row. The Python form is pickled: torchvision
reads the published files, after their checksums, and no others.
"""

from __future__ import annotations

import gzip
import io
import tarfile
from collections.abc import Mapping
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from ..fields import Argument
from ..files import open_regular, printable
from .dataset import ImageDataset, from_arrays
from .reading import InvalidFile, guarded, missing, read_regular

_RECORD = 1 + 3 * 32 * 32
_STEMS = {"train": [f"data_batch_{i}" for i in range(1, 6)], "test": ["test_batch"]}
_BINARY, _PYTHON = "cifar-10-batches-bin", "cifar-10-batches-py"
_BINARY_ARCHIVE, _PYTHON_ARCHIVE = "cifar-10-binary.tar.gz", "cifar-10-python.tar.gz"
_MAX_BATCH = 10_000 * _RECORD
_MAX_ARCHIVE = 1 << 28  # unpacked; the published one has 0.17 GiB
_MAX_MEMBERS = 100  # the published archive has 9


def load_cifar10(split: str, data_dir: Path) -> ImageDataset:
    """CIFAR-10 from binary files, some or all, else Python files, else either one's .tar.gz."""
    stems = _STEMS[split]
    names = [f"{stem}.bin" for stem in stems]
    for folder in (data_dir, data_dir / _BINARY):
        paths = [folder / name for name in names if (folder / name).is_file()]
        if paths:
            batches = {p: read_regular(p, _MAX_BATCH, "a CIFAR-10 batch") for p in paths}
            return _binary_dataset(split, folder, batches)
    for folder in (data_dir, data_dir / _PYTHON):
        if any((folder / stem).is_file() for stem in stems):
            return _python_dataset(split, folder, folder)
    archive = data_dir / _BINARY_ARCHIVE
    if archive.is_file():
        batches = _unpack(archive, [f"{_BINARY}/{name}" for name in names])
        return _binary_dataset(split, archive, batches)
    archive = data_dir / _PYTHON_ARCHIVE
    if archive.is_file():
        return _from_python_archive(split, archive)
    raise missing(
        "cifar10",
        f"{names[0]} or {stems[0]} is not in {data_dir}, nor in {_BINARY} or {_PYTHON} inside it, "
        f"nor is {_BINARY_ARCHIVE} or {_PYTHON_ARCHIVE}",
    )


def _binary_dataset(split: str, source: Path, batches: Mapping[Path, bytes]) -> ImageDataset:
    for path, content in batches.items():
        if not content or len(content) % _RECORD:
            raise InvalidFile(
                f"{printable(path)} is cut or not in CIFAR-10's binary format: expected a multiple "
                f"of {_RECORD} bytes (a full batch: {_MAX_BATCH}), found {len(content)}; fetch it "
                "again"
            )
        labels = np.frombuffer(content, np.uint8)[::_RECORD]
        if labels.max() > 9:
            raise InvalidFile(
                f"{printable(path)} is not CIFAR-10: expected labels 0 .. 9, found {labels.min()} "
                f".. {labels.max()}"
            )
    records = np.frombuffer(b"".join(batches.values()), np.uint8).reshape(-1, _RECORD)
    part = f", {len(batches)} of 5 batches" if split == "train" and len(batches) < 5 else ""
    told = f"{printable(source)} ({len(records):,} images{part})"
    images = records[:, 1:].reshape(-1, 3, 32, 32)
    return from_arrays(images, records[:, 0], "cifar10", split, told)


def _unpack(path: Path, names: list[str]) -> dict[Path, bytes]:
    """Members of a .tar.gz among `names`, read into memory."""
    with open_regular(path) as file, guarded(path, "a .tar.gz; it is cut or damaged"):
        content = gzip.GzipFile(fileobj=file).read(_MAX_ARCHIVE + 1)
        if len(content) > _MAX_ARCHIVE:
            raise ValueError(f"it decompresses to more than {_MAX_ARCHIVE} bytes")
        found = {}
        with tarfile.open(fileobj=io.BytesIO(content), mode="r:") as archive:
            for member in islice(archive, _MAX_MEMBERS):
                if member.name in names and member.isreg() and member.size <= _MAX_BATCH:
                    end = member.offset_data + member.size
                    found[path / member.name] = content[member.offset_data : end]
    if not found:
        raise InvalidFile(
            f"{printable(path)} must hold {names[0]}, a file of at most {_MAX_BATCH} bytes, found "
            "no batch in it; fetch it again"
        )
    return dict(sorted(found.items()))


def _python_dataset(split: str, folder: Path, source: Path) -> ImageDataset:
    """The published files, whose MD5s torchvision compares before it unpickles one."""
    from torchvision.datasets import CIFAR10

    class CIFAR10InFolder(CIFAR10):
        base_folder = ""  # inside the root

    try:
        published = CIFAR10InFolder(folder, train=split == "train")
    except RuntimeError as error:
        raise InvalidFile(
            f"{printable(folder)} must hold the six published batches of cifar-10-python.tar.gz "
            "and batches.meta; no other pickles are read: fetch them into another folder with",
            Argument("download", True),
            f"or give the binary form ({_STEMS[split][0]}.bin)",
        ) from error
    images, told = published.data, f"{printable(source)} ({len(published):,} images)"
    return from_arrays(images.transpose(0, 3, 1, 2), published.targets, "cifar10", split, told)


def _from_python_archive(split: str, path: Path) -> ImageDataset:
    """The published Python archive, unpacked by torchvision to a temporary folder."""
    from torchvision.datasets import CIFAR10
    from torchvision.datasets.utils import check_integrity, extract_archive

    if not check_integrity(path, CIFAR10.tgz_md5):
        raise InvalidFile(
            f"{printable(path)} is not the published archive (MD5 {CIFAR10.tgz_md5}); no other "
            "pickles are read: fetch it into another folder with",
            Argument("download", True),
            f"or give the binary form ({_BINARY_ARCHIVE})",
        )
    with TemporaryDirectory() as folder:
        extract_archive(str(path), folder)
        return _python_dataset(split, Path(folder) / _PYTHON, path)
