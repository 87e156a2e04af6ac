"""What `dsmooth reproduce` plans, and what it reads of the runs that it watches."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dsmooth.config import flatten
from dsmooth.reproduce import (
    plan_from_preset,
)
from dsmooth.runs import RunFolder, training_seconds
from dsmooth.train.side_by_side import Watched, last_words


@pytest.mark.quick
def test_plan_shares_the_budget_between_groups() -> None:
    plan = plan_from_preset("mnist-quick", budget=10, seed=3)
    assert [[c.role for c in group] for group in plan.groups] == [["noisy", "denoiser"], ["plain"]]
    budgets = [{c.budget for c in group} for group in plan.groups]
    assert all(len(b) == 1 for b in budgets)
    assert sum(b for group in budgets for b in group if b) == pytest.approx(10)
    assert {c.seed for c in plan.configs.values()} == {3}
    assert all(c.images is None for c in plan.configs.values())


@pytest.mark.parametrize(("budget", "evaluations"), [(0.1, 1), (1.0, 2), (8.0, 8), (600.0, 8)])
def test_a_short_run_is_scored_less_often(budget: float, evaluations: int) -> None:
    configs = plan_from_preset("mnist-quick", budget=budget).configs
    assert configs["noisy"].evaluations == evaluations
    assert configs["denoiser"].evaluations == evaluations


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


def test_a_watched_log_is_read_once_and_only_whole_lines(tmp_path: Path) -> None:
    watched = Watched("noisy", RunFolder(tmp_path))
    watched.read()
    assert watched.text() == "starting"
    start = json.dumps({"event": "start", "images": 0, "seconds": 0, "total": 100, "loss": "bits"})
    step = json.dumps(
        {"event": "step", "images": 40, "seconds": 2, "bits_per_dim": 1.5, "images_per_second": 20}
    )
    (tmp_path / "log.jsonl").write_text(start + "\n" + step[:20])
    watched.read()
    assert (watched.images, watched.text()) == (0, "starting")
    with open(tmp_path / "log.jsonl", "a") as file:
        file.write(step[20:] + "\n")
    watched.read()
    assert watched.images == 40
    assert watched.text() == "1.500 bits/dim · 20 img/s · 0:03 left"


def test_last_words_are_the_error_if_there_is_one(tmp_path: Path) -> None:
    path = tmp_path / "output.txt"
    path.write_text("noisy: 8 images\ndsmooth: error: the disk is full\nfree some\n")
    assert last_words(path) == "the disk is full\nfree some"
    path.write_text("\n".join(map(str, range(40))))
    assert last_words(path, lines=2) == "38\n39"


def test_flatten_compares_as_json_does() -> None:
    value = {"a": {"b": (1, 2), "c": None}, "d": "x"}
    assert flatten(value) == flatten(json.loads(json.dumps(value)))
    assert flatten(value) == {"a.b": [1, 2], "a.c": None, "d": "x"}
