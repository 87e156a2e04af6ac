"""Results as JSON files that state what decided them: a result is computed once and then read."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from ..distributed import meet, rank_and_size
from ..files import read_json, write_json

# go on: compute what is not stored; redo: compute it all; read: compute nothing.
Mode = Literal["go on", "redo", "read"]
KEY = "asked"  # the field of the cache key


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
    meet()  # nobody writes while another looks
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


def digest_of(x: Tensor) -> str:
    """SHA-256 of the values of a tensor."""
    return hashlib.sha256(x.numpy(force=True).tobytes()).hexdigest()
