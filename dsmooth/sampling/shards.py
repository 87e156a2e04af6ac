"""Images on disk: one .npz, or numbered .npy files that a repeated call goes on with."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from ..files import read_json, write_json, write_npz
from .draw import Draw

MANIFEST = "shards.json"
SHARD_SIZE = 1000


def write_images(path: Path, x: Tensor, draw: Draw) -> None:
    """Write the images x (N, C, H, W) of a draw as one compressed .npz: x, seed, first_index."""
    seed, first_index = np.uint64(draw.seed), np.int64(draw.first_index)
    write_npz(path, {"x": x.numpy(force=True), "seed": seed, "first_index": first_index})


class Shards:
    """A folder that takes the images of a draw in order, chunk after chunk.

    Files shard_00000.npy, ... hold `size` images each, the last one the rest, as float32 (size,
    *image_shape). The images lie on disk when `add` returns. After an interruption (Ctrl-C, a full
    disk, a killed process) the same folder says in `done` how many it has. Drawing goes on behind
    them, and gives the files of an uninterrupted call.

    description: what decides the images beside their numbers (seed, temperature, hash of the
    weights); JSON values. It is kept in shards.json. Raises ValueError for a size below 1 and for a
    folder that holds another drawing.
    """

    def __init__(
        self,
        folder: str | Path,
        draw: Draw,
        image_shape: tuple[int, int, int],
        description: Mapping[str, Any] | None = None,
        *,
        size: int = SHARD_SIZE,
    ) -> None:
        if size < 1:
            raise ValueError(f"size must be at least 1, got {size}")
        self.folder = Path(folder)
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
        self.done = self._found()

    def add(self, images: Tensor) -> None:
        """Write the next images (N, *image_shape), which may go on into further files."""
        x = images.numpy(force=True)
        while len(x):
            shard, offset = divmod(self.done, self.size)
            length = min(self.size, self.n - shard * self.size)
            array = np.lib.format.open_memmap(
                self._path(shard),
                mode="r+" if offset else "w+",
                dtype=np.float32,
                shape=(length, *self.image_shape),
            )
            count = min(len(x), length - offset)
            array[offset : offset + count] = x[:count]
            array.flush()
            x, self.done = x[count:], self.done + count
            # Only now do these images count: a crash before repeats them, one after keeps them.
            write_json(self.folder / MANIFEST, {**self._drawing, "done": self.done})

    def _path(self, shard: int) -> Path:
        return self.folder / f"shard_{shard:05d}.npy"

    def _found(self) -> int:
        """How many images are there already. Raises ValueError for another drawing's folder."""
        manifest = self.folder / MANIFEST
        if not manifest.exists():
            if any(self.folder.glob("shard_*.npy")):
                raise ValueError(
                    f"{self.folder} holds shards without {MANIFEST}: choose another folder"
                )
            write_json(manifest, {**self._drawing, "done": 0})
            return 0
        found = read_json(manifest)
        for key, value in self._drawing.items():
            if found.get(key) != value:
                raise ValueError(
                    f"{self.folder} holds another drawing: its {key} is {found.get(key)!r}, not "
                    f"{value!r}; choose another folder"
                )
        return int(found["done"])
