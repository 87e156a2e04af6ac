"""Images on disk: one .npz, or many numbered .npy files that a stopped run goes on with."""

from __future__ import annotations

import hashlib
import io
import json
import math
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from ..data.guard import guarded, open_regular
from ..files import lock_folder, read_json, write_json, write_npz
from .draw import Draw

MANIFEST = "shards.json"
SHARD_SIZE = 1000
_DTYPE = np.dtype("<f4")


def write_images(path: Path, x: Tensor, draw: Draw, asked: Mapping[str, Any] | None = None) -> None:
    """Write the images x (N, C, H, W) of a draw as one compressed .npz: x, seed, first_index.

    asked: what decides the images, kept beside them as JSON in "asked".
    """
    arrays = {
        "x": x.numpy(force=True),
        "seed": np.uint64(draw.seed),
        "first_index": np.int64(draw.first_index),
    }
    write_npz(path, arrays if asked is None else {**arrays, "asked": np.array(json.dumps(asked))})


@contextmanager
def open_shards(
    folder: str | Path,
    draw: Draw,
    image_shape: tuple[int, int, int],
    description: Mapping[str, Any] | None = None,
    *,
    size: int = SHARD_SIZE,
) -> Iterator[Shards]:
    """`Shards` that no other process writes meanwhile.

    Raises ValueError if one does, and for a size below 1.
    """
    with lock_folder(Path(folder), "another process that draws into it"):
        yield Shards(Path(folder), draw, image_shape, description, size=size)


class Shards:
    """A folder that takes the images of a draw in order, chunk after chunk; see `open_shards`.

    Files shard_00000.npy, ... hold `size` images each, the last one the rest, as float32
    (size, *image_shape). The images lie on disk when `add` returns. After an interruption (Ctrl-C,
    a full disk, a killed process) the same folder says in `done` how many it has, to go on behind
    them; the files are then those of an uninterrupted call. A file is complete in its last chunk:
    until then it is shorter than its header says, and no reader takes it.

    description: what decides the images beside their numbers (seed, temperature, hash of the
    weights); JSON values. It is kept in shards.json, with the SHA-256 of each file's images.
    Raises ValueError for a size below 1, for a folder that holds another drawing, and for images
    that are not those that were written.
    """

    def __init__(
        self,
        folder: Path,
        draw: Draw,
        image_shape: tuple[int, int, int],
        description: Mapping[str, Any] | None = None,
        *,
        size: int = SHARD_SIZE,
    ) -> None:
        if size < 1:
            raise ValueError(f"size must be at least 1, got {size}")
        self.folder = folder
        self.size = size
        self.n = draw.count
        self.image_shape = image_shape
        self.folder.mkdir(parents=True, exist_ok=True)
        self._drawing = {
            "description": dict(description or {}),
            "n": draw.count,
            "first_index": draw.first_index,
            "shard_size": size,
            "image_shape": list(image_shape),
        }
        self._digests: list[Any] = []
        self.done = self._found()

    @property
    def paths(self) -> list[Path]:
        """The files of the whole draw, in order."""
        return [self._path(i) for i in range(-(-self.n // self.size))]

    def add(self, images: Tensor) -> None:
        """Write the next images (N, *image_shape), which may go on into further files."""
        x = np.ascontiguousarray(images.numpy(force=True), _DTYPE)
        while len(x):
            shard, offset = divmod(self.done, self.size)
            count = min(len(x), self._length(shard) - offset)
            self._write(shard, offset, x[:count].tobytes())
            x, self.done = x[count:], self.done + count
            # Only now do these images count: a crash before repeats them, one after keeps them.
            digests = [digest.hexdigest() for digest in self._digests]
            write_json(
                self.folder / MANIFEST, {**self._drawing, "done": self.done, "sha256": digests}
            )

    def _write(self, shard: int, offset: int, data: bytes) -> None:
        """Write the images behind the first `offset` ones of a file."""
        header = self._header(shard)
        start = len(header) + offset * self._image_bytes
        path = self._path(shard)
        try:
            with open(path, "r+b" if offset else "wb") as file:
                if not offset:
                    file.write(header)
                file.truncate(start)  # images that do not count
                file.seek(start)
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise OSError(error.errno, f"could not write {path}: {error.strerror}") from None
        if not offset:
            self._digests.append(hashlib.sha256())
        self._digests[shard].update(data)

    @property
    def _image_bytes(self) -> int:
        return math.prod(self.image_shape) * _DTYPE.itemsize

    def _length(self, shard: int) -> int:
        """Images of a complete file."""
        return min(self.size, self.n - shard * self.size)

    def _header(self, shard: int) -> bytes:
        """The .npy header of a complete file."""
        buffer = io.BytesIO()
        shape = (self._length(shard), *self.image_shape)
        np.lib.format.write_array_header_1_0(
            buffer, {"descr": _DTYPE.str, "fortran_order": False, "shape": shape}
        )
        return buffer.getvalue()

    def _path(self, shard: int) -> Path:
        return self.folder / f"shard_{shard:05d}.npy"

    def _found(self) -> int:
        """How many images are there already."""
        manifest = self.folder / MANIFEST
        if not manifest.exists():
            if any(self.folder.glob("shard_*.npy")):
                raise ValueError(
                    f"{self.folder} holds shards without {MANIFEST}: choose another folder"
                )
            write_json(manifest, {**self._drawing, "done": 0, "sha256": []})
            return 0
        found = read_json(manifest)
        for key, value in self._drawing.items():
            if found.get(key) != value:
                raise ValueError(
                    f"{self.folder} holds another drawing: its {key} is {found.get(key)!r}, not "
                    f"{value!r}; choose another folder"
                )
        done, digests = found.get("done"), found.get("sha256")
        if (
            type(done) is not int
            or not 0 <= done <= self.n
            or not isinstance(digests, list)
            or len(digests) != -(-done // self.size)
        ):
            raise ValueError(f"{manifest} is damaged: draw into another folder")
        for shard, stated in enumerate(digests):
            self._digests.append(self._check(shard, min(self.size, done - shard * self.size)))
            if self._digests[shard].hexdigest() != stated:
                raise damaged(self._path(shard))
        return done

    def _check(self, shard: int, count: int) -> Any:
        """The running SHA-256 of the first `count` images of a file, whose header is checked."""
        header, path = self._header(shard), self._path(shard)
        digest = hashlib.sha256()
        with open_regular(path) as file:
            if file.read(len(header)) != header:
                raise damaged(path)
            left = count * self._image_bytes
            while piece := file.read(min(left, 1 << 20)):
                digest.update(piece)
                left -= len(piece)
            if left or (count == self._length(shard) and file.read(1)):
                raise damaged(path)
        return digest


def damaged(path: Path) -> ValueError:
    """The error for a file whose images are not those that were drawn."""
    return ValueError(
        f"{path} does not hold the images that were drawn into it: remove its folder to draw again"
    )


def check_shards(folder: Path) -> None:
    """Raise ValueError unless the files of a folder with a manifest are those of a whole draw."""
    found = read_json(folder / MANIFEST)
    numbers = [found.get(name) for name in ("n", "done", "shard_size")]
    digests = found.get("sha256")
    if not all(type(value) is int and value > 0 for value in numbers) or type(digests) is not list:
        raise ValueError(f"{folder / MANIFEST} is damaged or that of an unfinished draw")
    n, done, size = (int(value) for value in numbers if value is not None)
    if done != n:
        raise ValueError(
            f"{folder} holds {done} of {n} images: repeat the command that draws them to go on"
        )
    if len(digests) != -(-n // size):
        raise ValueError(f"{folder / MANIFEST} is damaged: {len(digests)} digests of {n} images")
    for shard, stated in enumerate(digests):
        path = folder / f"shard_{shard:05d}.npy"
        with open_regular(path) as file, guarded(path, "a shard"):
            if np.lib.format.read_magic(file) != (1, 0):
                raise damaged(path)
            np.lib.format.read_array_header_1_0(file)
            digest = hashlib.sha256()
            while piece := file.read(1 << 20):
                digest.update(piece)
        if digest.hexdigest() != stated:
            raise damaged(path)
