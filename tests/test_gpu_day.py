"""The plan for a day with a GPU: what it skips, stops, continues and writes; and a rehearsal."""

from __future__ import annotations

import json
import runpy
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

SCRIPT = Path(__file__).resolve().parents[1] / "tools" / "gpu_day.py"
# Stops in time, as training does, until it is called for the third time.
PATIENT = """
with open({path!r}, "a+") as file:
    file.write("x")
    file.seek(0)
    raise SystemExit(0 if len(file.read()) == 3 else 143)
"""


@pytest.fixture(scope="module")
def tool() -> SimpleNamespace:
    return SimpleNamespace(**runpy.run_path(str(SCRIPT)))


def step(tool: Any, name: str, code: str = "", rank: int = 0, **settings: Any) -> Any:
    command = [sys.executable, "-S", "-c", code or f"print('{name} ran')"]
    return tool.Step(name, command, command, rank=rank, **{"seconds": 1.0, **settings})


def outcomes(day: Any) -> dict[str, str]:
    return {name: found["outcome"] for name, found in day.steps.items()}


@pytest.mark.quick
def test_every_step_is_within_ten_minutes_and_all_of_them_within_three_hours(
    tool: SimpleNamespace, tmp_path: Path
) -> None:
    steps = tool.steps(tmp_path)
    names = [step.name for step in steps]
    assert len(set(names)) == len(names)
    assert all(step.seconds <= step.limit <= 600 for step in steps)
    assert tool.chosen(steps, 3 * 3600) == set(names)
    assert tool.chosen(steps, 150) == {"build", "doctor"}
    # Steps that show errors come before those that take times.
    order = ["build", "doctor", "tests", "memcheck", "step-mnist", "tune-mnist", "train-noisy"]
    assert sorted(order, key=names.index) == order


@pytest.mark.quick
def test_what_matters_least_is_left_out_and_done_when_there_is_time(
    tool: SimpleNamespace, tmp_path: Path
) -> None:
    steps = [step(tool, "first", rank=2, seconds=50), step(tool, "second", rank=1, seconds=50)]
    day = tool.Day(tmp_path)
    tool.go(lambda: steps, day, 60)
    assert outcomes(day) == {"first": "skipped", "second": "done"}
    assert "takes 50 s, 60 s are left" in (tmp_path / "day.md").read_text()
    again = tool.Day(tmp_path)
    (tmp_path / "second.log").unlink()
    tool.go(lambda: steps, again, 200)
    assert outcomes(again) == {"first": "done", "second": "done"}
    assert not (tmp_path / "second.log").exists()
    assert json.loads((tmp_path / "day.json").read_text())["steps"]["first"]["text"] == "first ran"


def test_a_step_that_fails_or_hangs_is_noted_and_the_next_one_runs(
    tool: SimpleNamespace, tmp_path: Path
) -> None:
    steps = [
        step(tool, "wrong", "print('a reason'); raise SystemExit(3)"),
        step(tool, "slow", "import time; time.sleep(60)", limit=0.3),
        step(tool, "slice", PATIENT.format(path=str(tmp_path / "calls")), slice=True),
        step(tool, "last"),
    ]
    missing = tool.Step("missing", ["/no/such/program"], None, 1, 0)
    day = tool.Day(tmp_path)
    tool.go(lambda: [*steps, missing], day, 60)
    expected = {"wrong": "failed", "slow": "too long", "slice": "done", "last": "done"}
    assert outcomes(day) == expected | {"missing": "failed"}
    assert day.steps["wrong"]["text"] == "a reason"
    assert (tmp_path / "calls").read_text() == "xxx"  # continued while there was time


@pytest.mark.quick
def test_nothing_is_measured_of_what_does_not_build(tool: SimpleNamespace, tmp_path: Path) -> None:
    steps = [step(tool, "build", "raise SystemExit(1)"), step(tool, "tests")]
    day = tool.Day(tmp_path)
    tool.go(lambda: steps, day, 60)
    assert outcomes(day) == {"build": "failed"}


@pytest.mark.full
def test_rehearsal(tool: SimpleNamespace, tmp_path: Path) -> None:
    """On the CPU, of each kind of command one: a measurement, and training."""
    only = ["--only", "build", "loss", "train-noisy"]
    arguments = ["--rehearse", "--minutes", "20", "--out", str(tmp_path), *only]
    assert tool.main(arguments) == 0
    written = json.loads((tmp_path / "day.json").read_text())
    assert {name: found["outcome"] for name, found in written["steps"].items()} == {
        "build": "skipped",
        "loss": "done",
        "train-noisy": "done",
    }
    assert written["results"]["loss"]["finished"]
    assert "| loss small |" in (tmp_path / "day.md").read_text()
    assert (tmp_path / "runs" / "noisy" / "model.safetensors").exists()
