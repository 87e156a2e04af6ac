"""The kernels compiled by the oldest Triton that the package takes, beside the one installed.

What a version does to machine code cannot be told from another: 3.6 overwrites registers of matrix
instructions in flight where an operand is computed in registers, 3.9 does not.
"""

from __future__ import annotations

import os
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton", reason="Triton is not installed: nothing can be compiled")
ROOT = Path(__file__).resolve().parents[1]
SCRIPT = ROOT / ".ci" / "oldest_triton"
LAWS = "not elsewhere and (every_matmul or in_registers or no_matmul)"


@pytest.mark.full
def test_the_oldest_triton_compiles_them_as_well(tmp_path: Path) -> None:
    """Without a network and a cache there is none, and .ci/oldest_triton has to be run first."""
    oldest = runpy.run_path(str(SCRIPT))
    folder = oldest["folder"]()
    if not folder.exists():
        pytest.skip(f"Triton {oldest['version']()} is not in {folder}: run .ci/oldest_triton")
    files = [ROOT / "tests" / "test_aot_gated_resnet.py"]
    command = [
        *(sys.executable, "-m", "pytest", "-q", "-n0", "-p", "no:cacheprovider"),
        *(f"--rootdir={ROOT}", "-c", str(ROOT / "pyproject.toml")),
        *("-m", "", "-k", LAWS, *map(str, files)),
    ]
    environment = {k: v for k, v in os.environ.items() if k != "PYTEST_ADDOPTS"}
    paths = [str(folder), environment.get("PYTHONPATH", "")]
    environment["PYTHONPATH"] = os.pathsep.join(path for path in paths if path)
    # Another folder: `python -m` puts the current one before an installed dsmooth.
    check = [sys.executable, "-c", "import triton; print(triton.__version__)"]
    found = subprocess.run(
        check, env=environment, cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert found.stdout.strip() == oldest["version"]()
    run = subprocess.run(
        command, cwd=tmp_path, env=environment, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    if run.returncode != 0:
        pytest.fail(f"exit status {run.returncode}:\n{run.stdout}", pytrace=False)
    assert " passed" in run.stdout
    assert " skipped" not in run.stdout
