"""Images on disk as numbered .npy files: a stopped call goes on with them, a larger one adds."""

from __future__ import annotations

import hashlib
import io
import math
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from ..config import flatten
from ..data.reading import guarded, open_regular
from ..files import lock_folder, read_json, write_json
from .request import Request

MANIFEST = "shards.json"
SHARD_SIZE = 1000
_DTYPE = np.dtype("<f4")


@contextmanager
def open_shards(
    folder: str | Path,
    draw: Request,
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
    them; the files are then those of an uninterrupted call. So are those of a draw of more images
    into the folder of a smaller one. A file is complete in its last chunk: until then it is shorter
    than its header says, and no reader takes it.

    description: what decides the images beside their numbers (seed, temperature, hash of the
    weights); JSON values. It is kept in shards.json, with the SHA-256 of each file's images.
    Raises ValueError for a size below 1, for a folder that holds another drawing, and for images
    that are not those that were written.
    """

    def __init__(
        self,
        folder: Path,
        draw: Request,
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
        return self._header_of(self._length(shard))

    def _header_of(self, count: int) -> bytes:
        """The .npy header of `count` images; as long for any number of them, up to the size."""
        buffer = io.BytesIO()
        shape = (count, *self.image_shape)
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
        n, done, digests = found.get("n"), found.get("done"), found.get("sha256")
        check_drawing(self.folder, found, {**self._drawing, "n": n})
        if type(n) is int and n > self.n:
            raise ValueError(
                f"{self.folder} holds a drawing of {n} images: ask for {n} or more, not {self.n}"
            )
        if (
            type(n) is not int
            or type(done) is not int
            or not 0 <= done <= n
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
        """The running SHA-256 of the first `count` images of a file, whose header is checked.

        A header of fewer images, that of a smaller draw, becomes that of this one.
        """
        header, path = self._header(shard), self._path(shard)
        digest = hashlib.sha256()
        with open_regular(path) as file:
            found = file.read(len(header))
            if found != header:
                if found not in map(self._header_of, range(1, self.size + 1)):
                    raise damaged(path)
                with open(path, "r+b") as writable:
                    writable.write(header)
            left = count * self._image_bytes
            while piece := file.read(min(left, 1 << 20)):
                digest.update(piece)
                left -= len(piece)
            if left or (count == self._length(shard) and file.read(1)):
                raise damaged(path)
        return digest


def check_drawing(folder: Path, found: Mapping[str, Any], asked: Mapping[str, Any]) -> None:
    """Raise ValueError, naming each setting of a drawing that differs from that in `folder`."""
    there = flatten(dict(found))
    different = [
        f"{name.removeprefix('description.')} {shortened(there.get(name))}, not {shortened(value)}"
        for name, value in flatten(dict(asked)).items()
        if there.get(name) != value
    ]
    if different:
        raise ValueError(
            f"{folder} holds another drawing: {'; '.join(different)}; choose another folder"
        )


def shortened(value: Any) -> str:
    """A value for a message: of digests the first eight digits."""
    if isinstance(value, list):
        return "+".join(map(shortened, value))
    return value[:8] if isinstance(value, str) and len(value) == 64 else str(value)


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
