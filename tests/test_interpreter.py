"""Runs every interpreted_*.py, the laws of the Triton kernels, under Triton's interpreter.

Each file in a process of its own, with TRITON_INTERPRET=1; by hand:

    TRITON_INTERPRET=1 pytest tests/interpreted_logistic_mixture.py
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from subprocess import CompletedProcess

import pytest

pytest.importorskip("triton", reason="Triton is not installed: its kernels cannot be interpreted")
ROOT = Path(__file__).resolve().parents[1]
FILES = sorted(path.name for path in (ROOT / "tests").glob("interpreted_*.py"))


Runs = dict[str, "Future[CompletedProcess[str]]"]


@pytest.fixture(scope="module")
def runs(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Runs]:
    """The runs of all files asked for, as many at a time as there are cores."""
    names = [
        item.callspec.params["name"]
        for item in request.session.items
        if isinstance(item, pytest.Function) and item.originalname == "test_interpreted"
    ]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        yield {name: pool.submit(interpret, name, tmp_path_factory.mktemp("run")) for name in names}


def interpret(name: str, folder: Path) -> CompletedProcess[str]:
    environment = {k: v for k, v in os.environ.items() if k != "PYTEST_ADDOPTS"}
    command = [
        *(sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"),
        *(f"--rootdir={ROOT}", "-c", str(ROOT / "pyproject.toml"), str(ROOT / "tests" / name)),
    ]
    return subprocess.run(
        command,
        # Another folder: `python -m` puts the current one before an installed dsmooth.
        cwd=folder,
        env={**environment, "TRITON_INTERPRET": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


@pytest.mark.parametrize("name", FILES)
def test_interpreted(name: str, runs: Runs) -> None:
    run = runs[name].result()
    if run.returncode != 0:
        pytest.fail(f"{name}, exit status {run.returncode}:\n{run.stdout}", pytrace=False)
