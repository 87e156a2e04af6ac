"""One sound file for every form that the readers take, and damaged copies of each."""

from __future__ import annotations

import gzip
import io
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dsmooth.data.mnist import SUBSET_PATH
from tests.helpers.data_makers import (
    cifar_binary,
    idx_bytes,
    random_bytes,
    write_images,
    write_mnist,
)

_PIXELS = random_bytes((3, 3072))
_LABELS = np.arange(3, dtype=np.uint8)


@dataclass(frozen=True)
class Subject:
    """A file and the reader for it; promise: a pattern of the images' dtype and shape.

    packed: the file is a gzip of `content`, and damage to either side of it is tried.
    """

    name: str
    reader: str
    content: bytes
    promise: str
    packed: bool = False

    def write(self, folder: Path, content: bytes) -> None:
        """Write the damaged content among the sound files that a data set needs beside it."""
        folder.mkdir()
        if self.reader == "mnist":
            write_mnist(folder, 5)
            (folder / "train-images-idx3-ubyte").unlink()
        if self.reader == "folder":
            write_images(folder, {"a.png": random_bytes((8, 8))})
        (folder / self.name).write_bytes(content)

    def contents(self, seed: int) -> Iterator[bytes]:
        """The sound file, then damaged ones."""
        sound = gzip.compress(self.content) if self.packed else self.content
        yield sound
        yield from damaged(sound, seed)
        if self.packed:
            yield from map(gzip.compress, damaged(self.content, seed + 1))


def damaged(content: bytes, seed: int) -> Iterator[bytes]:
    """Cuts, changed bits, changed words near the beginning and the end, and what is put between."""
    rng = np.random.default_rng(seed)
    n = len(content)
    yield from (content[:cut] for cut in (0, 1, 3, 16, *rng.integers(0, n, 8)))
    for flips in (1, 1, 1, 1, 4, 4, 4, 16, 64):
        changed = bytearray(content)
        for place in rng.integers(0, n, flips):
            changed[place] ^= 1 << int(rng.integers(8))
        yield bytes(changed)
    words = (b"\0\0\0\0", b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff", b"\xff\xff\xff\x7f", b"\x80")
    for word in words:
        for start in (int(rng.integers(0, min(n, 64))), *rng.integers(0, min(n, 400), 3)):
            yield content[:start] + word + content[start + len(word) :]
        start = n - int(rng.integers(1, min(n, 120)))
        yield content[:start] + word + content[start + len(word) :]
    first, second = sorted(rng.integers(0, n, 2))
    yield content[:first] + content[second:]
    yield content + content
    yield content[:second] + rng.bytes(50) + content[second:]


def _picture(suffix: str, channels: int) -> Subject:
    from PIL import Image

    shape = (8, 8) if channels == 1 else (8, 8, channels)
    buffer = io.BytesIO()
    extension = {"jpg": "JPEG", "tif": "TIFF", "deflate.tif": "TIFF", "pgm": "PPM"}
    options = {"compression": "tiff_adobe_deflate"} if suffix == "deflate.tif" else {}
    exif = Image.Exif()
    exif[0x0112] = 6
    if suffix in ("jpg", "png", "webp"):
        options["exif"] = exif.tobytes()
    kind = extension.get(suffix, suffix.upper())
    Image.fromarray(random_bytes(shape)).save(buffer, kind, **options)
    promise = r"torch.uint8 \(1, [13], 8, 8\)"
    return Subject(f"x.{suffix}", "folder", buffer.getvalue(), promise)


def _tar(content: bytes) -> Subject:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for batch in ("data_batch_1", "test_batch"):
            member = tarfile.TarInfo(f"cifar-10-batches-bin/{batch}.bin")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    promise = r"torch.uint8 \(\d+, 3, 32, 32\)"
    return Subject("cifar-10-binary.tar.gz", "cifar10", buffer.getvalue(), promise, packed=True)


def subjects() -> list[Subject]:
    images, grey = idx_bytes(random_bytes((5, 28, 28))), r"torch.uint8 \(5, 1, \d+, \d+\)"
    binary, cifar = cifar_binary(_PIXELS, _LABELS), r"torch.uint8 \(\d+, 3, 32, 32\)"
    pictures = [("png", 1), ("png", 3), ("jpg", 3), ("bmp", 3), ("ppm", 3), ("pgm", 1)]
    pictures += [("tif", 3), ("deflate.tif", 1), ("webp", 3)]
    return [
        Subject("train-images-idx3-ubyte", "mnist", images, grey),
        Subject("train-images-idx3-ubyte.gz", "mnist", images, grey, packed=True),
        Subject("data_batch_1.bin", "cifar10", binary, cifar),
        _tar(binary),
        Subject("subset.npz", "npz", SUBSET_PATH.read_bytes(), r"torch.uint8 \(1000, 1, 28, 28\)"),
        *(_picture(suffix, channels) for suffix, channels in pictures),
    ]


def foreign(everything: list[Subject]) -> Iterator[tuple[Subject, bytes]]:
    """Each file under the name of another form."""
    for subject in everything:
        for other in everything:
            if other.name != subject.name and len(other.content) < 100_000:
                yield subject, other.content
