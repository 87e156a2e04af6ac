"""Runs every file of tests/interpreted, the laws of the Triton kernels, under its interpreter.

In a process of their own, with TRITON_INTERPRET=1; by hand:

    TRITON_INTERPRET=1 pytest -n0 tests/interpreted/logistic_mixture.py
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton", reason="Triton is not installed: its kernels cannot be interpreted")
ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "tests" / "interpreted"
FILES = sorted(path.name for path in FOLDER.glob("*.py"))


@pytest.mark.long
@pytest.mark.parametrize(
    ("names", "marks"),
    [(FILES, "not full"), *(pytest.param([f], "full", marks=pytest.mark.full) for f in FILES)],
)
def test_interpreted(names: list[str], marks: str, tmp_path: Path) -> None:
    command = [
        *(sys.executable, "-m", "pytest", "-q", "-n0", "-p", "no:cacheprovider"),
        *(f"--rootdir={ROOT}", "-c", str(ROOT / "pyproject.toml"), "-m", marks),
        *(str(FOLDER / name) for name in names),
    ]
    environment = {k: v for k, v in os.environ.items() if k != "PYTEST_ADDOPTS"}
    run = subprocess.run(
        command,
        # Another folder: `python -m` puts the current one before an installed dsmooth.
        cwd=tmp_path,
        env={**environment, "TRITON_INTERPRET": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    if run.returncode != 0:
        pytest.fail(f"{names}, exit status {run.returncode}:\n{run.stdout}", pytrace=False)
