"""The record of a request: a JSON file with the request and its results so far.

Its form, in the keys `version`, `dsmooth`, `request`, `parts` and `result`, is that of every result
of `evaluate`, `probe` and `reproduce`, of folders of drawn images, and of the packaged cards.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Generic, TypeVar

import msgspec

from ._version import __version__
from .distributed import barrier, broadcast_int, rank_and_size
from .fields import difference, structure
from .files import Json, file_sha256, printable, read_json, write_json

T = TypeVar("T")
P = TypeVar("P")
VERSION = 1


class Record(Generic[T, P]):
    """The record in `path` of a request, of type T, made of parts of type P.

    request: all that decides the result, as JSON. A part is a value, or the SHA-256 of a file next
    to the record, under its name. All processes of a group make the same record and call its
    methods together; rank 0 writes. `result` is None until it is known.

    free: fields of the request that may differ from the stored ones; `earlier` has these. replace:
    take over the record of another request, with the first write; without it ValueError names the
    first field that differs. Raises ValueError for a file of another form, too.
    """

    def __init__(
        self,
        path: Path,
        request: Mapping[str, object],
        result: type[T],
        part: type[P],
        *,
        free: Iterable[str] = (),
        replace: bool = False,
    ) -> None:
        self.path = path
        self.request: Mapping[str, object] = json.loads(json.dumps(request))
        self.earlier: Mapping[str, Any] = {}
        self.parts: dict[str, P] = {}
        self.result: T | None = None
        if not path.exists():
            return
        stored = _read(path)
        compared = {**stored["request"], **{name: self.request[name] for name in free}}
        if other := difference(compared, self.request):
            if replace:
                return
            raise ValueError(f"{path} is of another request: {other}; choose another folder")
        self.earlier = stored["request"]
        # mypy takes a class that is a value for a variable, not for a type.
        self.parts = _structure(stored["parts"], dict[str, part], path)  # type: ignore[valid-type]
        if stored["result"] is not None:
            self.result = _structure(stored["result"], result, path)

    def begin(self) -> None:
        """Write the request, unless there is a record of it."""
        if not self.earlier:
            self._write()

    def missing(self, names: Iterable[str]) -> list[str]:
        """The files that are not parts, or are not there with the same content any more."""
        return [
            name
            for name in names
            if not _is_unchanged(self.path.with_name(name), self.parts.get(name))
        ]

    def keep(self, parts: Mapping[str, P]) -> None:
        """Enter parts; a part that is a file has been written before."""
        self.parts |= parts
        self._write()

    def keep_files(self: Record[T, str], *names: str) -> None:
        """Enter files that were written."""
        if rank_and_size()[0] == 0:
            self.keep({name: file_sha256(self.path.with_name(name)) for name in names})

    def part(self, name: str, compute: Callable[[], P]) -> P:
        """A part, which is computed unless there is one."""
        if broadcast_int(name not in self.parts):
            self.keep({name: compute()})
        barrier()
        return self.parts[name]

    def obtain(self, compute: Callable[[], T]) -> T:
        """The result, which is computed unless there is one."""
        if broadcast_int(self.result is None):
            self.finish(compute())
        barrier()
        assert self.result is not None
        return self.result

    def finish(self, result: T) -> None:
        """Enter the result in place of the parts."""
        self.result, self.parts = result, {}
        self._write()

    def _write(self) -> None:
        if rank_and_size()[0] == 0:
            write_json(self.path, record_of(self.request, self.result, self.parts))


def record_of(
    request: Mapping[str, object], result: object, parts: Mapping[str, object] | None = None
) -> Mapping[str, object]:
    """The content of a record."""
    content = {"request": request, "parts": parts or {}, "result": result}
    return msgspec.to_builtins({"version": VERSION, "dsmooth": __version__, **content})


def read_result(path: Path, kind: type[T]) -> T | None:
    """The result in a record; None for one without.

    Raises FileNotFoundError or ValueError, naming the file.
    """
    stored = _read(path)
    if stored["result"] is None:
        return None
    return _structure(stored["result"], kind, path)


def _is_unchanged(path: Path, digest: object) -> bool:
    return path.exists() and file_sha256(path) == digest


def read_parts(path: Path, part: type[P]) -> tuple[Mapping[str, Any], dict[str, P]]:
    """The request and the parts in a record. Raises as `read_result` does."""
    stored = _read(path)
    # mypy takes a class that is a value for a variable, not for a type.
    return stored["request"], _structure(stored["parts"], dict[str, part], path)  # type: ignore[valid-type]


def _read(path: Path) -> Json:
    content = read_json(path)
    if content.get("version") != VERSION:
        raise ValueError(
            f"{printable(path)} is not a record of dsmooth {__version__}: remove it, or choose "
            "another folder"
        )
    if not all(isinstance(content.get(name), dict) for name in ("request", "parts")):
        raise ValueError(f"{printable(path)} is damaged: it needs a request and parts; remove it")
    return {"result": None, **content}


def _structure(values: object, kind: type[T], path: Path) -> T:
    try:
        return structure(values, kind)
    except ValueError as error:
        raise ValueError(f"{printable(path)} is damaged: {error}; remove it") from None
