"""The plan for a day with a GPU: what it skips, stops and writes; and a rehearsal."""

from __future__ import annotations

import dataclasses
import importlib
import itertools
import json
import os
import re
import runpy
import subprocess
import sys
import tarfile
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

SCRIPT = Path(__file__).resolve().parents[1] / "tools" / "gpu_day.py"


@pytest.fixture(scope="module")
def tool() -> SimpleNamespace:
    return SimpleNamespace(**runpy.run_path(str(SCRIPT)))


@pytest.fixture(scope="module")
def on_gpu() -> ModuleType:
    pytest.importorskip("triton")
    return importlib.import_module("benchmarks.on_gpu")


def test_cases_are_there(tool: SimpleNamespace, on_gpu: ModuleType) -> None:
    for step in tool.steps():
        for script, case in itertools.pairwise(step.command):
            if script.startswith("benchmarks/"):
                assert on_gpu.cases_of(case), case


@pytest.mark.quick
def test_it_needs_python_alone(tmp_path: Path) -> None:
    """As on a machine without the packages: no site-packages, and no dsmooth beside the script."""
    out = tmp_path / "out"
    alone = [sys.executable, "-I", "-S", str(SCRIPT), "--only", "preflight"]
    environment = {**os.environ, "OUT": str(out)}
    subprocess.run([*alone, f"--state={tmp_path / 'state'}"], env=environment, check=True)
    assert {path.name for path in out.iterdir()} == {"day.json", "day.md", "logs.tar.gz"}
    with tarfile.open(out / "logs.tar.gz") as tar:
        log = tar.extractfile("logs/preflight.log")
        assert b"Python 3" in log.read()


@pytest.mark.full
def test_rehearsal(
    tool: SimpleNamespace, on_gpu: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On the CPU, of each kind of command one."""
    state, out = tmp_path / "state", tmp_path / "out"
    only = ["build", "smoke-loss", "step-mnist-kept", "loss", "trace-mnist", "train-noisy"]
    arguments = ["--rehearse", "--minutes", "20", "--state", str(state)]
    monkeypatch.setenv("OUT", str(out))
    assert tool.main([*arguments, "--only", *only]) == 0
    written = json.loads((out / "day.json").read_text())["steps"]
    outcomes = {name: found["outcome"] for name, found in written.items()}
    assert outcomes == {"build": "skipped"} | dict.fromkeys(only[1:], "done")
    results = json.loads((out / "measured.json").read_text())["results"]
    assert set(results) == {*on_gpu.cases_of("step-mnist-kept"), *on_gpu.cases_of("loss")}
    assert "| loss-mnist-continuous-ours |" in (out / "day.md").read_text()
    with tarfile.open(out / "logs.tar.gz") as tar:
        assert {"logs/trace-mnist.json.gz", "runs/noisy/model.safetensors"} <= set(tar.getnames())


def test_a_wrong_number_stops_its_family_alone(tool: SimpleNamespace, tmp_path: Path) -> None:
    day = tool.Day(tmp_path)
    day.note("smoke-training", "failed")
    timed = {step.name: step for step in tool.steps() if tool.proofs_of(step.name)}
    programs = {"benchmarks/on_gpu.py", "train"}
    assert set(timed) == {step.name for step in tool.steps() if programs & set(step.command)}
    for step in timed.values():
        harmless = dataclasses.replace(step, command=["true"])
        tool.attempt(harmless, day, 1000, False)
    stopped = {name for name in timed if day.steps[name]["outcome"] == "skipped"}
    assert stopped == {name for name in timed if name.startswith(("step-", "trace-", "train-"))}


@pytest.mark.full
def test_chosen_tests_are_there(tool: SimpleNamespace) -> None:
    """Some are there with a device alone."""

    def collected(chosen: str, *files: str) -> int:
        command = [*tool.gpu_tests("-n0", "-k", chosen, *files), "--collect-only"]
        listed = subprocess.run(command, cwd=tool.ROOT, capture_output=True, text=True, check=True)
        return int(re.findall(r"(\d+)/\d+ tests collected", listed.stdout)[0])

    counts = [collected(chosen, *files) for files, chosen in tool.FAMILIES.values()]
    assert all([*counts, collected(tool.SANITIZED, *tool.PROVING)])
