"""The plan of a day with a GPU: its cases and tests exist; steps are done, stopped or skipped."""

from __future__ import annotations

import importlib
import json
import re
import runpy
import subprocess
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


def test_cases_are_there(tool: SimpleNamespace, on_gpu: ModuleType, tmp_path: Path) -> None:
    cases = [s.command[2] for s in tool.steps(tmp_path) if "benchmarks/on_gpu.py" in s.command]
    assert len(cases) > 5
    assert all(map(on_gpu.cases_of, cases))


@pytest.mark.full
def test_a_case_of_each_kind_runs_on_the_cpu(on_gpu: ModuleType, tmp_path: Path) -> None:
    out = tmp_path / "out.json"
    cases = ["sampler-mnist-2112", "preset-mnist-noisy", "step-mnist-ours", "loss-mnist"]
    on_gpu.main([*cases, "--device=cpu", "--tiny", f"--out={out}"])
    measured = {case for name in cases for case in on_gpu.cases_of(name)}
    assert set(json.loads(out.read_text())["results"]) == measured


def test_steps_are_done_failed_or_skipped_and_the_next_call_continues(tool, tmp_path, monkeypatch):
    """A wrong number stops only its family; a step that is too long for the call waits."""
    step, ran = tool.Step, tmp_path / "ran"
    note = ["bash", "-c", f"echo >> {ran}"]
    planned = [
        step("smoke-ops", 1, ["false"]),
        step("loss", 1, note, ("ops",)),
        step("plain", 1, note),
        step("long", 1000, note),
        step("slow", 1, ["sleep", "60"]),
    ]
    monkeypatch.setitem(tool.main.__globals__, "steps", lambda state: planned)
    monkeypatch.setenv("OUT", str(tmp_path / "out"))
    for _ in range(2):
        assert tool.main(["--minutes=0.03", f"--state={tmp_path / 'state'}"]) == 1
        outcomes = json.loads((tmp_path / "out" / "day.json").read_text())
        assert outcomes == {"smoke-ops": "failed (1)", "plain": "done", "slow": "too long"}
    assert ran.read_text() == "\n"


@pytest.mark.full
def test_chosen_tests_are_there(tool: SimpleNamespace) -> None:
    """Some exist only with a device."""
    smoke = [[*tool.TESTS, "-k", chosen, *files] for files, chosen in tool.FAMILIES.values()]
    for command in (*smoke, tool.SANITIZED):
        listed = subprocess.run(
            [*command, "-n0", "--collect-only"],
            cwd=tool.ROOT,
            capture_output=True,
            text=True,
            check=True,
        )
        assert int(re.findall(r"(\d+)/\d+ tests collected", listed.stdout)[0])
