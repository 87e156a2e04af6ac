"""Many images on disk as numbered .npy files; a stopped run goes on where it was."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from ..checkpoint import read_json, write_json

MANIFEST = "shards.json"


def draw_to_shards(
    draw: Callable[[int, int], Tensor],
    n: int,
    folder: str | Path,
    *,
    image_shape: tuple[int, int, int],
    first_index: int = 0,
    description: Mapping[str, Any] | None = None,
    shard_size: int = 1000,
    chunk: int = 64,
    progress: Callable[[int], None] | None = None,
) -> list[Path]:
    """Write images first_index .. first_index + n - 1 to `folder`; return the files in order.

    draw: called as draw(first, count) for image numbers first .. first + count - 1 and at most
    `chunk` of them, returns (count, *image_shape) float; it must be a function of the numbers
    alone, as every sampler here is. Files shard_00000.npy, ... hold `shard_size` images each, the
    last one the rest, as float32 (shard_size, *image_shape). Only `chunk` images are in memory.
    progress: called with the number of images on disk, at the start and after each chunk.

    After an interruption (Ctrl-C, a full disk, a killed process) the same call goes on behind the
    last chunk that reached the disk, and the files are those of an uninterrupted run.
    description: what decides the images (seed, temperature, hash of the weights); JSON values. It
    is kept in shards.json, and a folder of another run is refused.

    Raises ValueError for counts below 1 and for a folder that holds another run.
    """
    for name, value in (("n", n), ("shard_size", shard_size), ("chunk", chunk)):
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    run = {
        "description": dict(description or {}),
        "n": n,
        "first_index": first_index,
        "shard_size": shard_size,
        "image_shape": list(image_shape),
    }
    done = _resume(folder, run)
    if progress is not None:
        progress(done)
    while done < n:
        shard = done // shard_size
        size = min(shard_size, n - shard * shard_size)
        path = _path(folder, shard)
        offset = done - shard * shard_size
        mode = "r+" if offset else "w+"
        array = np.lib.format.open_memmap(
            path, mode=mode, dtype=np.float32, shape=(size, *image_shape)
        )
        while offset < size:
            count = min(chunk, size - offset)
            array[offset : offset + count] = draw(first_index + done, count).numpy(force=True)
            array.flush()
            offset, done = offset + count, done + count
            # Only now do these images count: a crash before repeats them, one after keeps them.
            write_json(folder / MANIFEST, {**run, "done": done})
            if progress is not None:
                progress(done)
    return [_path(folder, i) for i in range((n + shard_size - 1) // shard_size)]


def _path(folder: Path, shard: int) -> Path:
    return folder / f"shard_{shard:05d}.npy"


def _resume(folder: Path, run: dict[str, Any]) -> int:
    """How many images are there already. Raises ValueError for another run's folder."""
    manifest = folder / MANIFEST
    if not manifest.exists():
        if any(folder.glob("shard_*.npy")):
            raise ValueError(f"{folder} holds shards without {MANIFEST}: choose another folder")
        write_json(manifest, {**run, "done": 0})
        return 0
    found = read_json(manifest)
    for key, value in run.items():
        if found.get(key) != value:
            raise ValueError(
                f"{folder} holds another run: its {key} is {found.get(key)!r}, not {value!r}; "
                "choose another folder"
            )
    return int(found["done"])
