"""Files that are written whole or not at all: JSON, tensors as safetensors, arrays as .npz.

`dsmooth.data.arrays` reads the arrays.
"""

from __future__ import annotations

import errno
import fcntl
import io
import json
import os
import secrets
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

if TYPE_CHECKING:
    from torch import Tensor, nn


PARTIAL = ".partial"


def write_atomically(path: Path, data: bytes) -> None:
    """Replace `path` by `data`; after a crash or a full disk the old content is still there."""
    # The name is unique, should another process write the same file.
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}{PARTIAL}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException as error:  # Ctrl-C too leaves no part behind
        with suppress(OSError):
            temporary.unlink()
        if isinstance(error, OSError):
            raise OSError(error.errno, f"could not write {path}: {error.strerror}") from None
        raise


def open_to_write(path: Path, flags: int = 0) -> int:
    """Descriptor of a regular file, made if need be; links and pipes of strangers are refused."""
    refused = ValueError(f"{path} must be a regular file, found a link, a folder or a device")
    flags |= os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    try:
        descriptor = os.open(path, flags, 0o666)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.EISDIR, errno.ENXIO):
            raise refused from None
        raise
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise refused
    return descriptor


@contextmanager
def lock_folder(folder: Path, holder: str) -> Iterator[None]:
    """Keep other processes out of a folder, and remove what a killed one left half written."""
    folder.mkdir(parents=True, exist_ok=True)
    with open(open_to_write(folder / ".lock"), "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(
                f"{holder} is at work in {folder}; wait for it, or choose another folder"
            ) from None
        for left in folder.glob(f".*{PARTIAL}"):
            left.unlink(missing_ok=True)
        yield


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Write `value` as indented JSON."""
    write_atomically(path, (json.dumps(value, indent=2) + "\n").encode())


def printable(path: Path | str) -> str:
    r"""Return `path` as text that can be printed: bytes that are not UTF-8 become \xNN."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def open_regular(path: Path) -> BinaryIO:
    """Open a regular file: a named pipe would wait for a writer, a device may act on it."""
    if path.is_file():
        return open(path, "rb")
    if not path.exists():
        why = ", only a link to nothing" if path.is_symlink() else ""
        raise FileNotFoundError(f"there is no {printable(path)}{why}")
    raise ValueError(
        f"{printable(path)} must be a regular file, found a folder, a pipe, a socket or a device"
    )


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object. Raises FileNotFoundError or ValueError, naming the file."""
    with open_regular(path) as file:
        text = file.read()
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not JSON: {error}") from None
    if not isinstance(value, dict):
        raise ValueError(f"{path} must hold a JSON object, got {type(value).__name__}")
    return value


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write tensors and string metadata as one safetensors file."""
    from safetensors.torch import save

    plain = {name: t.detach().cpu().contiguous() for name, t in tensors.items()}
    write_atomically(path, save(plain, dict(metadata)))


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read tensors (on the CPU) and metadata. Raises FileNotFoundError or ValueError."""
    from safetensors import SafetensorError, safe_open

    open_regular(path).close()
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            return tensors, dict(file.metadata() or {})
    except (SafetensorError, OSError, RuntimeError) as error:
        raise ValueError(f"{path} is not a readable safetensors file: {error}") from None


def write_npz(path: Path, arrays: Mapping[str, Any], *, compressed: bool = True) -> None:
    """Write numpy arrays and scalars as one .npz."""
    import numpy as np

    buffer = io.BytesIO()
    (np.savez_compressed if compressed else np.savez)(buffer, **arrays)
    write_atomically(path, buffer.getvalue())


def save_weights(model: nn.Module, path: Path) -> None:
    """Write a model's state dict."""
    write_tensors(path, model.state_dict(), {"format": "pt"})


def load_state(model: nn.Module, state: Mapping[str, Tensor], source: str) -> None:
    """Copy `state` into `model`; ValueError naming `source` where `check_state` refuses it."""
    import torch

    check_state(model, state, source)
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            tensor.copy_(state[name])


def check_state(model: nn.Module, state: Mapping[str, Tensor], source: str) -> None:
    """Raise ValueError, naming `source`, where keys, shapes or kinds of numbers differ."""
    own = model.state_dict()
    different = sorted(own.keys() ^ state.keys()) or sorted(
        name
        for name, tensor in own.items()
        if tensor.shape != state[name].shape
        or tensor.is_floating_point() != state[name].is_floating_point()
    )
    if different:
        raise ValueError(
            f"{source} holds a model of another shape: {len(different)} tensors differ, "
            f"first {different[0]!r}"
        )
