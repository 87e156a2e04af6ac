"""The place of an output, probed before any work."""

from __future__ import annotations

import tempfile
from pathlib import Path


def check_place(path: Path) -> None:
    """Raise ValueError, before any work, unless `path` can be made, with its folders."""
    there = next(p for p in (*path.absolute().parents, Path("/")) if p.exists())
    if not there.is_dir():
        raise ValueError(f"{there} must be a folder to write {path} into")
    if path.suffix and path.is_dir():
        raise ValueError(f"{path} must be a file to write, and is a folder")
    try:
        tempfile.TemporaryFile(dir=there).close()
    except OSError as error:
        raise ValueError(f"{path} cannot be written: {there}: {error.strerror}") from None
