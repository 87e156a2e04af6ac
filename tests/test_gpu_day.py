"""The plan for a day with a GPU: what it skips, stops and writes; and a rehearsal."""

from __future__ import annotations

import json
import runpy
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

SCRIPT = Path(__file__).resolve().parents[1] / "tools" / "gpu_day.py"


@pytest.fixture(scope="module")
def tool() -> SimpleNamespace:
    return SimpleNamespace(**runpy.run_path(str(SCRIPT)))


@pytest.mark.quick
def test_every_step_is_within_ten_minutes(tool: SimpleNamespace, tmp_path: Path) -> None:
    steps = tool.steps(tmp_path)
    names = [step.name for step in steps]
    assert len(set(names)) == len(names)
    assert all(step.seconds <= step.limit <= 600 for step in steps)
    # Steps that show errors come before those that take times.
    order = ["build", "doctor", "small-tests", "step-mnist", "tune-mnist", "train-noisy"]
    assert sorted(order, key=names.index) == order


def test_outcomes_are_noted_and_what_is_done_is_not_done_again(
    tool: SimpleNamespace, tmp_path: Path
) -> None:
    day = tool.Day(tmp_path)

    def attempt(name: str, code: str, left: float = 60, **settings: Any) -> str:
        command = [sys.executable, "-S", "-c", code]
        step = tool.Step(name, command, command, **{"seconds": 1.0, **settings})
        tool.attempt(step, day, left, False)
        return str(day.outcome(name))

    assert attempt("right", "print('it ran')") == "done"
    assert attempt("right", "raise SystemExit(1)") == "done"
    assert attempt("wrong", "print('a reason'); raise SystemExit(3)") == "failed"
    assert attempt("slow", "import time; time.sleep(60)", limit=0.3) == "too long"
    assert attempt("slice", "raise SystemExit(143)") == "to be continued"
    assert attempt("slice", "print('the rest')") == "done"
    assert attempt("large", "", left=0.5) == "skipped"
    tool.attempt(tool.Step("missing", ["/no/such/program"], None, 1), day, 60, False)
    assert day.outcome("missing") == "failed"
    written = json.loads((tmp_path / "day.json").read_text())["steps"]
    assert (written["right"]["text"], written["wrong"]["text"]) == ("it ran", "a reason")
    assert "takes 1 s, 0 s are left" in (tmp_path / "day.md").read_text()


@pytest.mark.full
def test_rehearsal(tool: SimpleNamespace, tmp_path: Path) -> None:
    """On the CPU, of each kind of command one: a measurement, and training."""
    only = ["--only", "build", "loss", "train-noisy"]
    arguments = ["--rehearse", "--minutes", "20", "--out", str(tmp_path), *only]
    assert tool.main(arguments) == 0
    written = json.loads((tmp_path / "day.json").read_text())
    outcomes = {name: found["outcome"] for name, found in written["steps"].items()}
    assert outcomes == {"build": "skipped", "loss": "done", "train-noisy": "done"}
    assert written["results"]["loss"]["finished"]
    assert "| loss small |" in (tmp_path / "day.md").read_text()
    assert (tmp_path / "runs" / "noisy" / "model.safetensors").exists()
