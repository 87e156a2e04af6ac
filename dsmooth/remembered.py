"""Results that a later call of the same request reads instead of computing them again."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from .distributed import barrier, broadcast_int, rank_and_size
from .fields import Json, difference
from .files import read_json, write_json


def remembered(
    path: Path,
    key: Json,
    compute: Callable[[], Json],
    *,
    again: bool = False,
    replace: bool = True,
) -> Json:
    """The JSON object {"asked": key, **compute()} of a file, computed unless the file has it.

    key: all that decides the result, as JSON. again: compute it in any case. replace: overwrite the
    result of another key; without it ValueError names the first field that differs. All processes
    of a group call this, and rank 0 writes.
    """
    key = json.loads(json.dumps(key))  # as the file has it
    result = read_json(path) if path.exists() else {}
    stored = result.get("asked")
    if result and not replace and (other := difference(stored, key)):
        raise ValueError(f"{path} holds another result: {other}; choose another folder")
    if broadcast_int(again or stored != key):
        result = json.loads(json.dumps({"asked": key, **compute()}))
        if rank_and_size()[0] == 0:
            write_json(path, result)
    barrier()
    return result
