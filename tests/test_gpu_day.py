"""The plan for a day with a GPU, and a rehearsal of it."""

from __future__ import annotations

import json
import runpy
from pathlib import Path
from types import SimpleNamespace

import pytest

SCRIPT = Path(__file__).resolve().parents[1] / "tools" / "gpu_day.py"


@pytest.fixture(scope="module")
def tool() -> SimpleNamespace:
    return SimpleNamespace(**runpy.run_path(str(SCRIPT)))


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
