"""Processes that are ranks of one call, as torchrun would start them."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

# A path that finds the package under test first, whatever the folder of the process holds.
START = f"import sys; sys.path[:] = {sys.path!r}; "
COMMAND = START + "from dsmooth.cli import main; main()"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def start_ranks(
    size: int, arguments: Sequence[str], folder: Path, code: str = COMMAND
) -> list[subprocess.Popen[str]]:
    """Start `size` ranks of `dsmooth` with these arguments, or of other code."""
    common = {
        "WORLD_SIZE": str(size),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(free_port()),
        "OMP_NUM_THREADS": "1",
    }
    return [
        subprocess.Popen(
            [sys.executable, "-c", code, *arguments],
            env={**os.environ, **common, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            cwd=folder,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        for rank in range(size)
    ]


def run_script(script: Path, size: int, arguments: Sequence[str], folder: Path) -> None:
    """Run a script by so many ranks; they end well."""
    code = START + f"import runpy; runpy.run_path({str(script)!r}, run_name='__main__')"
    children = start_ranks(size, arguments, folder, code)
    for child in children:
        _, errors = child.communicate(timeout=300)
        assert child.returncode == 0, errors
