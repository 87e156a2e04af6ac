"""A cache of Triton's that is filled for another machine serves there, in another folder."""

from __future__ import annotations

import runpy
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers.data_makers import refuses

pytest.importorskip("triton", reason="Triton is not installed: nothing can be compiled")
ROOT = Path(__file__).resolve().parents[2]
# Forward and backward of the smallest network, into the current folder's cache.
STEP = f"""
import runpy, sys
sys.path.append({str(ROOT)!r})
tool = runpy.run_path({str(ROOT / "tools" / "triton_cache.py")!r})
print(tool["fill"]({{"step": lambda: tool["benchmarked"]("step-mnist-ours", tiny=True)}}))
tool["check"]()
"""


@pytest.mark.quick
def test_kernels_of_another_triton_are_refused(tmp_path, monkeypatch, capsys) -> None:
    tool = runpy.run_path(str(ROOT / "tools" / "triton_cache.py"))
    monkeypatch.chdir(tmp_path)
    refuses("another build of Triton", tool["check"], error=SystemExit)
    (tmp_path / tool["CACHE"] / "A").mkdir(parents=True)
    (tmp_path / tool["CACHE"] / "A" / "some_kernel.cubin").touch()
    (tmp_path / tool["KEY"]).write_text(tool["key"]())
    tool["check"]()
    assert capsys.readouterr().out.startswith("1 kernels")
    monkeypatch.setattr("triton.runtime.cache.triton_key", lambda: "another")
    refuses("another build of Triton", tool["check"], error=SystemExit)


@pytest.mark.full
def test_a_step_on_a_cache_filled_before_compiles_nothing(tmp_path: Path) -> None:
    def new_kernels(folder: Path) -> int:
        command = [sys.executable, "-c", STEP]
        run = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True)
        return int(run.stdout.split("\n")[-3])

    here, there = tmp_path / "here", tmp_path / "there"
    here.mkdir()
    assert new_kernels(here) > 10
    here.rename(there)
    assert new_kernels(there) == 0
