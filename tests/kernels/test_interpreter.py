"""Tests of the Triton kernels in processes of their own.

Those of tests/kernels/interpreted run under Triton's interpreter; by hand:

    TRITON_INTERPRET=1 pytest -n0 tests/kernels/interpreted/logistic_mixture.py

Ahead-of-time compilation is tested with the oldest Triton too: 3.6 overwrites registers of matrix
instructions in flight where an operand is computed in registers, 3.9 does not.
"""

from __future__ import annotations

import os
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton", reason="Triton is not installed: its kernels cannot be interpreted")
ROOT = Path(__file__).resolve().parents[2]
TESTS = Path(__file__).parent
FILES = sorted((TESTS / "interpreted").glob("*.py"))


def run(folder: Path, arguments: list[str], **environment: str) -> str:
    """Output of Python from another folder: `python -m` finds the current one before an installed
    dsmooth."""
    inherited = {k: v for k, v in os.environ.items() if k != "PYTEST_ADDOPTS"}
    done = subprocess.run(
        [sys.executable, *arguments], cwd=folder, env=inherited | environment, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    if done.returncode != 0:
        pytest.fail(f"{arguments}, exit status {done.returncode}:\n{done.stdout}", pytrace=False)
    return done.stdout


def pytest_of(*files: Path, marks: str) -> list[str]:
    return [
        *("-m", "pytest", "-q", "-n0", "-p", "no:cacheprovider", f"--rootdir={ROOT}"),
        *("-c", str(ROOT / "pyproject.toml"), "-m", marks, *map(str, files)),
    ]


@pytest.mark.long
@pytest.mark.parametrize(
    ("files", "marks"),
    [
        (FILES, "not full"),
        *(pytest.param([f], "full", marks=pytest.mark.full, id=f.name) for f in FILES),
    ],
)
def test_interpreted(files: list[Path], marks: str, tmp_path: Path) -> None:
    run(tmp_path, pytest_of(*files, marks=marks), TRITON_INTERPRET="1")


@pytest.mark.full
def test_the_oldest_triton_compiles_them_as_well(tmp_path: Path) -> None:
    """Without a network and a cache there is none, and .ci/oldest_triton has to be run first."""
    oldest = runpy.run_path(str(ROOT / ".ci" / "oldest_triton"))
    folder = oldest["folder"]()
    if not folder.exists():
        pytest.skip(f"Triton {oldest['version']()} is not in {folder}: run .ci/oldest_triton")
    paths = [str(folder), os.environ.get("PYTHONPATH", "")]
    path = os.pathsep.join(path for path in paths if path)
    found = run(tmp_path, ["-c", "import triton; print(triton.__version__)"], PYTHONPATH=path)
    assert found.strip() == oldest["version"]()
    command = pytest_of(TESTS / "test_aot.py", marks="")
    chosen = "not elsewhere and (every_matmul or in_registers or elementwise)"
    printed = run(tmp_path, [*command, "-k", chosen], PYTHONPATH=path)
    assert " passed" in printed
    assert " skipped" not in printed
