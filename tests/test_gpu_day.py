"""The plan of a day with a GPU: skipped and stopped steps, results, and a rehearsal."""

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
def test_it_needs_only_python(tmp_path: Path) -> None:
    """Without site-packages, and without dsmooth on the path."""
    out = tmp_path / "out"
    command = [sys.executable, "-I", "-S", str(SCRIPT), "--only", "preflight"]
    environment = {**os.environ, "OUT": str(out)}
    subprocess.run([*command, f"--state={tmp_path / 'state'}"], env=environment, check=True)
    assert {path.name for path in out.iterdir()} == {"day.json", "day.md", "logs.tar.gz"}
    with tarfile.open(out / "logs.tar.gz") as tar:
        log = tar.extractfile("logs/preflight.log")
        assert b"Python 3" in log.read()


@pytest.mark.full
def test_rehearsal(
    tool: SimpleNamespace, on_gpu: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One command of each kind, on the CPU."""
    state, out = tmp_path / "state", tmp_path / "out"
    only = ["build", "sampler-mnist-2112", "smoke-loss", "preset-mnist-noisy", "step-mnist-ours"]
    only += ["loss", "trace-mnist", "train-noisy"]
    arguments = ["--rehearse", "--minutes", "20", "--state", str(state)]
    monkeypatch.setenv("OUT", str(out))
    assert tool.main([*arguments, "--only", *only]) == 0
    written = json.loads((out / "day.json").read_text())["steps"]
    outcomes = {name: found["outcome"] for name, found in written.items()}
    assert outcomes == {"build": "skipped"} | dict.fromkeys(only[1:], "done")
    results = json.loads((out / "measured.json").read_text())["results"]
    timed = ("sampler-mnist-2112", "preset-mnist-noisy", "step-mnist-ours", "loss")
    assert set(results) == {case for name in timed for case in on_gpu.cases_of(name)}
    assert "| loss-mnist-continuous-ours |" in (out / "day.md").read_text()
    with tarfile.open(out / "logs.tar.gz") as tar:
        assert "logs/trace-mnist.json.gz" in tar.getnames()
    with tarfile.open(out / "noisy.tar.gz") as tar:
        assert "runs/noisy/model.safetensors" in tar.getnames()
    assert len([*out.iterdir()]) <= 8
    assert max(path.stat().st_size for path in out.iterdir()) < 16 * 2**20


def test_files_over_the_limit_are_left_out(
    tool: SimpleNamespace, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    large, small = tmp_path / "a.bin", tmp_path / "b.log"
    large.write_bytes(os.urandom(tool.MOST_BYTES))
    small.write_text("a line")
    tool.pack(tmp_path / "logs.tar.gz", tmp_path, [large, small])
    with tarfile.open(tmp_path / "logs.tar.gz") as tar:
        assert tar.getnames() == ["b.log"]
    assert "a.bin of 15,728,640 bytes is left out" in capsys.readouterr().out


def test_the_most_important_numbers_come_first(tool: SimpleNamespace) -> None:
    """2,112 images of F40, then the step of a preset, each after its smoke tests."""
    names = [
        step.name for step in tool.steps() if step.name in tool.TIMED or tool.proofs_of(step.name)
    ]
    assert names[:2] == ["sampler-mnist-2112", "preset-mnist-noisy"]
    assert max(step.seconds for step in tool.steps()) <= tool.LIMIT <= 9 * 60


def test_a_wrong_number_stops_only_its_family(tool: SimpleNamespace, tmp_path: Path) -> None:
    day = tool.Day(tmp_path)
    day.note("smoke-training", "failed")
    timed = {step.name: step for step in tool.steps() if tool.proofs_of(step.name)}
    programs = {"benchmarks/on_gpu.py", "train"}
    assert set(timed) == {step.name for step in tool.steps() if programs & set(step.command)}
    for step in timed.values():
        harmless = dataclasses.replace(step, command=["true"])
        tool.attempt(harmless, day, 1000, False)
    stopped = {name for name in timed if day.steps[name]["outcome"] == "skipped"}
    words = ("step-", "preset-", "trace-", "train-")
    assert stopped == {name for name in timed if name.startswith(words)}


OUTCOMES = {
    "done": ["true"],
    "failed": ["no-such-program"],
    "too long": ["bash", "-c", "trap '' TERM; while :; do sleep 0.2; done"],
    "unfinished": ["bash", "-c", "trap 'exit 143' TERM; sleep 60 & wait", "--resume"],
}


@pytest.mark.parametrize("outcome", OUTCOMES)
def test_a_step_ends_in_time(
    tool: SimpleNamespace, outcome: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Training continues in the next call; a program that ignores SIGTERM is killed."""
    for name in ("LIMIT", "GRACE"):
        monkeypatch.setitem(tool.attempt.__globals__, name, 1)
    day = tool.Day(tmp_path)
    tool.attempt(tool.Step("step", OUTCOMES[outcome], 1), day, 1000, False)
    assert day.steps["step"]["outcome"] == outcome
    assert day.steps["step"]["seconds"] < 20


@pytest.mark.full
def test_chosen_tests_are_there(tool: SimpleNamespace) -> None:
    """Some exist only with a device."""

    def collected(chosen: str, *files: str) -> int:
        command = [*tool.gpu_tests("-n0", "-k", chosen, *files), "--collect-only"]
        listed = subprocess.run(command, cwd=tool.ROOT, capture_output=True, text=True, check=True)
        return int(re.findall(r"(\d+)/\d+ tests collected", listed.stdout)[0])

    counts = [collected(chosen, *files) for files, chosen in tool.FAMILIES.values()]
    assert all([*counts, collected(tool.SANITIZED, *tool.PROVING)])
