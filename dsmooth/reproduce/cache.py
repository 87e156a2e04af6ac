"""Results on disk beside the key of all that decides them: computed once, then read."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from ..data.arrays import read_npz
from ..distributed import barrier, rank_and_size
from ..files import read_json, write_json
from ..pictures import save_grid, visible
from ..progress import progress
from ..sampling.output import DrawPart, gather, write_images
from ..sampling.request import Request

# go on: compute what is not stored; redo: compute it all; read: compute nothing.
Mode = Literal["go on", "redo", "read"]
KEY = "asked"  # the field of the cache key
CHUNK = 64  # images drawn at a time
GRID_IMAGES = 64  # samples in the picture of a grid


def cached_json(
    path: Path,
    cache_key: Mapping[str, Any],
    compute: Callable[[], dict[str, Any]],
    mode: Mode = "go on",
) -> dict[str, Any]:
    """The result in `path` if its key is `cache_key`, else that of `compute`, written there.

    Mode "read" takes any result that is there, whatever its sizes, unless it is of other weights;
    it gives an empty one where there is none. Under torchrun all processes compute together, and
    rank 0 writes.
    """
    barrier()  # nobody writes while another looks
    stored = read_json(path) if path.exists() else {}
    key = stored.get(KEY, {})
    if mode == "read":
        return stored if key.get("weights_sha256") == cache_key.get("weights_sha256") else {}
    if mode == "go on" and stored and key == cache_key:
        return stored
    result: dict[str, Any] = json.loads(
        json.dumps({KEY: cache_key, **compute()})
    )  # as a later call reads it
    if rank_and_size()[0] == 0:
        write_json(path, result)
    return result


def cached_images(
    path: Path,
    request: Request,
    cache_key: Mapping[str, Any],
    draw_part: DrawPart,
    mode: Mode = "go on",
) -> Tensor | None:
    """The images in path.npz if their key is `cache_key`, else drawn and written there.

    A grid of them goes to path.png. None if mode is "read" and they are not there.
    """
    array, picture = (path.with_name(path.name + suffix) for suffix in (".npz", ".png"))
    x = None if mode == "redo" else _stored_images(array, cache_key)
    if x is not None or mode == "read":
        return x
    with progress(f"drawing {path.name}", request.count) as done:
        x = gather(draw_part, request, CHUNK, done)
    if x is not None:
        write_images(array, x, request, cache_key)
        save_grid(visible(x[:GRID_IMAGES]), picture)
    barrier()
    return x if x is not None else _stored_images(array, cache_key)


def _stored_images(path: Path, cache_key: Mapping[str, Any]) -> Tensor | None:
    """The images in `path`; None for those of another key."""
    arrays = read_npz(path) if path.exists() else {}
    same = str(arrays.get(KEY)) == json.dumps(cache_key)
    return torch.from_numpy(arrays["x"]) if same else None


def digest_of(x: Tensor) -> str:
    """SHA-256 of the values of a tensor."""
    return hashlib.sha256(x.numpy(force=True).tobytes()).hexdigest()
