"""The plan of `dsmooth reproduce`, and the history of its runs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dsmooth.config import flatten
from dsmooth.reproduce import plan_from_preset
from dsmooth.runs import RunFolder, training_seconds


@pytest.mark.quick
def test_plan_shares_the_budget() -> None:
    plan = plan_from_preset("mnist-quick", budget=10, seed=3)
    assert [config.role for config in plan.configs] == ["noisy", "denoiser", "plain"]
    assert [config.budget for config in plan.configs] == pytest.approx([4, 4, 2])
    assert {config.seed for config in plan.configs} == {3}
    assert all(config.images is None for config in plan.configs)


@pytest.mark.parametrize(("budget", "evaluations"), [(0.1, 1), (2.0, 2), (600.0, 8)])
def test_a_short_run_is_scored_less_often(budget: float, evaluations: int) -> None:
    configs = plan_from_preset("mnist-quick", budget=budget).configs
    assert [config.evaluations for config in configs[:2]] == [evaluations] * 2


@pytest.mark.parametrize("budget", [0.0, -1.0, float("nan"), float("inf")])
def test_a_budget_must_be_positive(budget: float) -> None:
    with pytest.raises(ValueError, match="budget"):
        plan_from_preset("mnist-quick", budget=budget)


@pytest.mark.quick
def test_history_forgets_steps_that_a_later_start_took_back(tmp_path: Path) -> None:
    entries = [
        {"event": "start", "images": 0, "seconds": 0.0},
        {"event": "step", "images": 8, "seconds": 1.0},
        {"event": "step", "images": 24, "seconds": 3.0},
        {"event": "start", "images": 8, "seconds": 0.0},
        {"event": "step", "images": 16, "seconds": 1.5},
    ]
    rest = {
        "start": {"total": 24, "loss": "bits"},
        "step": {"bits_per_dim": 1.5, "images_per_second": 8.0},
    }
    lines = [json.dumps(entry | rest[entry["event"]]) for entry in entries]
    (tmp_path / "log.jsonl").write_text("\n".join([*lines, '{"event": "st']))
    kept = RunFolder(tmp_path).history()
    assert [e["images"] for e in kept if e["event"] == "step"] == [8, 16]
    assert training_seconds(kept) == 2.5


def test_flatten_compares_as_json_does() -> None:
    value = {"a": {"b": (1, 2), "c": None}, "d": "x"}
    assert flatten(value) == flatten(json.loads(json.dumps(value)))
    assert flatten(value) == {"a.b": [1, 2], "a.c": None, "d": "x"}
