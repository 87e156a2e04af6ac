"""What a kill leaves of a folder."""

from __future__ import annotations

import builtins
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

# Every step of writing a file goes through one of these.
CHANGES = ((os, "open"), (os, "replace"), (os, "fsync"), (os, "unlink"), (builtins, "open"))
Files = dict[str, bytes]


def contents(folder: Path) -> Files:
    """The files of a folder; none if it is missing."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def states_of_kills(work: Callable[[], object], folder: Path) -> list[Files]:
    """The different states of a folder before each change of a file by `work`, and its last one.

    A kill leaves one of them: data that are not flushed are lost.
    """
    states: list[Files] = []

    def note() -> None:
        state = contents(folder)
        if state not in states[-1:]:
            states.append(state)

    def noted(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **keywords: Any) -> Any:
            note()
            return function(*args, **keywords)

        return call

    with pytest.MonkeyPatch.context() as patch:
        for module, name in CHANGES:
            patch.setattr(module, name, noted(getattr(module, name)))
        work()
    note()
    return states


def as_killed(folder: Path, state: Files) -> Path:
    """The folder with these files, none of them locked: locks end with their process."""
    folder.mkdir()
    for name, data in state.items():
        path = folder / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(data)
    return folder
