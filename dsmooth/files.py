"""Atomically written files: JSON, tensors as safetensors, arrays as .npz; and their readers."""

from __future__ import annotations

import fcntl
import glob
import hashlib
import io
import json
import os
import secrets
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO, TextIO, TypeVar

import msgspec
import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from .text import escape_control

T = TypeVar("T")
PARTIAL = ".partial"
LETTERS = 59  # of a file's name in that of its half: a name has 255 bytes, a letter up to 4
Json = dict[str, Any]  # an object of a JSON file


def write_atomically(path: str | Path, data: bytes, earlier: Path | None = None) -> None:
    """Replace the content of `path`; after a crash or a full disk the old content remains.

    earlier: a file that gets the old content.
    """
    path = Path(path)
    # The name is unique, in case another process writes the same file.
    temporary = path.with_name(f".{path.name[:LETTERS]}.{secrets.token_hex(4)}{PARTIAL}")
    with naming(path), ExitStack() as stack:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = stack.enter_context(open(temporary, "xb"))
        # Also after Ctrl-C no partial file remains.
        stack.callback(temporary.unlink, missing_ok=True)
        with suppress(OSError):  # network file systems without locks
            fcntl.flock(file, fcntl.LOCK_EX)  # held until the end, checked by `_remove_dead`
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
        if earlier is not None and path.exists():
            earlier.unlink(missing_ok=True)
            try:
                os.link(path, earlier)
            except OSError:  # a file system without links
                os.replace(path, earlier)
        os.replace(temporary, path)


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Let an error of the system inside name this file only."""
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from None


def open_to_append(path: Path) -> TextIO:
    """Open a file, created if missing. Raises OSError for links, and pipes that nobody reads."""
    safely = os.O_NOFOLLOW | os.O_NONBLOCK
    return open(path, "a", buffering=1, opener=lambda path, how: os.open(path, how | safely, 0o666))


@contextmanager
def lock_folder(folder: Path, holder: str) -> Iterator[None]:
    """Keep other processes out of a folder, which is made if it is missing, and stays if used."""
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        stack.callback(_remove_empty, made)
        file = stack.enter_context(open_to_append(folder / ".lock"))
        # Also the folder, as that file may be removed. Network file systems lock only files.
        descriptor = os.open(folder, os.O_RDONLY)
        stack.callback(os.close, descriptor)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(
                f"{holder} is at work in {folder}; wait for it, or choose another folder"
            ) from None
        except OSError:  # the folder cannot be locked; for the file the error repeats
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        stack.callback((folder / ".lock").unlink, missing_ok=True)
        yield


def _remove_empty(folders: Iterable[Path]) -> None:
    """Remove folders, the inner ones first, up to one that is in use."""
    with suppress(OSError):
        for folder in folders:
            folder.rmdir()


def remove_half_written(folder: Path) -> None:
    """Remove half-written files of dead writers in a folder, and in the folders of it."""
    _remove_dead([*folder.glob(f".*{PARTIAL}"), *folder.glob(f"*/.*{PARTIAL}")])


def _remove_dead(half_written: Iterable[Path]) -> None:
    """Remove half-written files; one whose writer is alive is locked."""
    for path in half_written:
        with suppress(OSError), open(path, "r+b") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            path.unlink()


def suffix_of(path: Path) -> str:
    """The suffix of a file; "" for a folder, whose name may end in a number: samples-0.9."""
    return "" if path.suffix[1:].isdecimal() else path.suffix


def check_writable(path: Path) -> None:
    """Raise ValueError, before any work, unless `path` and its folders can be created.

    A half-written one that a dead writer left is removed.
    """
    place, is_folder = path.absolute(), not suffix_of(path)
    try:
        with suppress(FileNotFoundError):  # others are of a path that no file can have
            path.stat()
        if path.exists() and path.is_dir() != is_folder:
            wanted, got = ("a folder", "a file") if is_folder else ("a file", "a folder")
            raise ValueError(f"{path} must be {wanted} to write, and is {got}")
        while not place.is_dir():
            place = place.parent
        tempfile.TemporaryFile(dir=place).close()
    except OSError as error:
        raise ValueError(f"{path} cannot be written: {place}: {error.strerror}") from None
    _remove_dead(path.parent.glob(f".{glob.escape(path.name[:LETTERS])}.*{PARTIAL}"))


def json_text(value: Mapping[str, object]) -> str:
    """The text of a JSON file. Raises ValueError for a number that is not finite."""
    return json.dumps(value, indent=2, allow_nan=False) + "\n"


def write_json(path: Path, value: Mapping[str, object]) -> None:
    """Write `json_text` of a value."""
    write_atomically(path, json_text(value).encode())


def printable(path: Path | str) -> str:
    r"""`escape_control` of a path; bytes that are not UTF-8 become \xNN."""
    return escape_control(os.fsencode(path).decode("utf-8", "backslashreplace"))


def open_regular(path: Path) -> BinaryIO:
    """Open a regular file: a named pipe would wait for a writer, a device may have side effects."""
    if path.exists() and not path.is_file():
        raise ValueError(f"{printable(path)} must be a regular file, and no folder, pipe or device")
    return open(path, "rb")


@contextmanager
def guarded(source: Path | str, what: str) -> Iterator[None]:
    """Turn any error inside into a ValueError of one line: decoders raise all kinds."""
    try:
        yield
    except Exception as error:
        reason = " ".join(ascii(str(error))[1:-1].split())[:200] or type(error).__name__
        raise ValueError(f"{printable(source)} cannot be read as {what} ({reason})") from error


def file_sha256(path: Path) -> str:
    """The hex digest of a file's content."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def read_json(path: Path) -> Json:
    """Read a JSON object. Raises FileNotFoundError or ValueError, naming the file."""
    with open_regular(path) as file:
        return parse_json(file.read(), path)


def parse_json(text: str | bytes, source: Path) -> Json:
    """Parse a JSON object. Raises ValueError, naming the source."""
    with guarded(source, "a JSON object"):
        return msgspec.convert(json.loads(text), Json, strict=True)


def structured(values: object, kind: type[T], source: Path | str) -> T:
    """The dataclass from the content of a file, strictly. ValueError names the file and field."""
    try:
        made = msgspec.convert(values, kind, strict=True)
        unknown = ", ".join(sorted(_unknown(values, msgspec.to_builtins(made))))
        reason = unknown and f"{kind.__name__} has no field {unknown}"
    except (msgspec.ValidationError, UnicodeError) as error:  # the latter for half a letter
        words, _, path = str(error).partition(" - at `$")
        reason = ": ".join(filter(None, (path.strip("`."), words)))
    if reason:
        raise ValueError(f"{printable(source)} does not fit: {escape_control(reason)}")
    return made


def _unknown(values: Any, known: Any) -> Iterator[str]:
    """Keys of nested dictionaries that `known` does not have, those of inner ones with dots."""
    if isinstance(values, dict) and isinstance(known, dict):
        for key, value in values.items():
            if key not in known:
                yield key
            else:
                yield from (f"{key}.{name}" for name in _unknown(value, known[key]))


def write_tensors(
    path: Path,
    tensors: Mapping[str, Tensor],
    metadata: Mapping[str, str],
    earlier: Path | None = None,
) -> None:
    """Write tensors and string metadata as one safetensors file; see `write_atomically`."""
    plain = {name: t.detach().cpu().contiguous() for name, t in tensors.items()}
    write_atomically(path, save(plain, dict(metadata)), earlier)


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read tensors (on the CPU) and metadata.

    Raises ValueError for content that is not a safetensors file, and OSError, such as
    FileNotFoundError, where the file cannot be read. Each names it.
    """
    with _opened_tensors(path) as opened:
        tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
        return tensors, dict(opened.metadata() or {})


def read_metadata(path: Path) -> dict[str, str]:
    """The metadata of a file of tensors. Raises as `read_tensors` does."""
    with _opened_tensors(path) as opened:
        return dict(opened.metadata() or {})


@contextmanager
def _opened_tensors(path: Path) -> Iterator[safe_open]:
    # By its descriptor: safetensors does not accept a path that is not UTF-8.
    with open_regular(path) as file:
        try:
            with safe_open(f"/dev/fd/{file.fileno()}", framework="pt") as opened:
                yield opened
        except SafetensorError as error:
            raise ValueError(f"{path} is not a readable safetensors file: {error}") from None
        except (OSError, RuntimeError) as error:  # torch raises the latter
            raise OSError(f"could not read {path}: {error}") from None


def write_npz(path: str | Path, arrays: Mapping[str, Any]) -> None:
    """Write numpy arrays and scalars as one .npz."""
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)
    write_atomically(path, buffer.getvalue())


def read_npz(path: Path, names: Sequence[str] | None = None) -> dict[str, NDArray[Any]]:
    """The arrays `names` of a .npz, all by default; nothing is unpickled."""
    with open_regular(path) as file, guarded(path, "a .npz without pickled objects"):
        arrays = np.load(file, allow_pickle=False)
        return {name: arrays[name] for name in names or arrays.files}
