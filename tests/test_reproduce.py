"""`dsmooth reproduce`: the whole path once, again, stopped and resumed, and in a wrong folder."""

from __future__ import annotations

import json
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from dsmooth.commands.options import DataOptions, Reproduce
from dsmooth.commands.reproduce import carry_out, runs_to_train
from dsmooth.config import TrainConfig
from dsmooth.fields import flatten
from dsmooth.files import lock_folder
from dsmooth.remembered import remembered
from dsmooth.runs import RunFolder, training_seconds
from dsmooth.training import NonFiniteLoss
from dsmooth.training.step import TrainState
from tests.helpers.data_makers import refuses
from tests.helpers.report_checks import check_self_contained, without_plots
from tests.helpers.tiny_runs import tiny

IMAGES = 160


def reproduce(out: Path, runs: tuple[TrainConfig, ...], **options: Any) -> int:
    return carry_out(Reproduce(out=out, count=9, scored_images=12, **options), runs)


@pytest.fixture(scope="module")
def data(made: Path) -> Path:
    return made / "images"


def tiny_runs(data: Path, images: int = IMAGES, seed: int = 0) -> tuple[TrainConfig, ...]:
    settings = {"data": "folder", "data_dir": str(data), "dropout": 0.0, "seed": seed}
    sizes = {"warmup_images": 0, "evaluations": 2, "evaluation_images": 4}
    counts = {"noisy": images, "denoiser": images, "plain": 32}
    return tuple(tiny(role, images=count, **settings, **sizes) for role, count in counts.items())


@pytest.fixture(scope="module")
def finished(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("once") / "out"
    with without_plots():
        assert reproduce(out, tiny_runs(data)) == 0
    return out


def test_everything_is_there_and_names_no_path(finished: Path, data: Path) -> None:
    for role in ("noisy", "denoiser", "plain"):
        assert RunFolder(finished / role).is_finished()
    for name in ("noisy", "two-step", "single-step", "plain"):
        with np.load(finished / "samples" / f"{name}.npz") as arrays:
            assert arrays["x"].shape == (9, 1, 8, 8)
        with Image.open(finished / "samples" / f"{name}.png") as picture:
            assert len(np.unique(np.asarray(picture))) > 2
    check_self_contained((finished / "report.html").read_text(encoding="utf-8"))
    text = (finished / "results.json").read_text()
    results = json.loads(text)
    assert str(data) not in text
    assert str(Path.home()) not in text
    pair = results["bits_per_dim"]["pair"]
    assert results["bits_per_dim"]["unit"] == "bits/dim"
    terms = pair["noisy"] + pair["smoothing"] + pair["denoiser"]
    assert pair["value"] == pytest.approx(terms, rel=1e-6)
    assert results["bits_per_dim"]["plain"]["n_images"] == min(12, results["data"]["test_images"])
    assert "labels" in results["probes"]["skipped"]
    assert "classifier is for MNIST" in results["frechet"]["skipped"]
    assert results["runs"]["noisy"]["images"] == IMAGES


def test_other_folders_are_refused_and_left_alone(finished: Path, data: Path, tmp_path) -> None:
    others = {"images": tiny_runs(data, images=128), "seed": tiny_runs(data, seed=1)}
    for name, runs in others.items():
        with pytest.raises(ValueError, match=f"holds another result: its .*{name} is"):
            reproduce(finished, runs)
    with lock_folder(finished, "someone"), pytest.raises(ValueError, match="is at work in"):
        reproduce(finished, tiny_runs(data))
    (tmp_path / "thesis.tex").write_text("words")
    refuses("holds no reproduction", reproduce, tmp_path, tiny_runs(data))
    out, words = tmp_path / "out", "`only=probes` needs trained models, and noisy"
    refuses("data_dir", reproduce, out, tiny_runs(tmp_path / "nowhere"), error=FileNotFoundError)
    refuses(words, reproduce, out, tiny_runs(data), only="probes")
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.tex"]


def test_stopped_and_resumed_is_the_uninterrupted_run(
    finished, data, tmp_path, monkeypatch, capsys, no_plots
) -> None:
    out, step, runs = tmp_path / "stopped", TrainState.step, tiny_runs(data)

    def stop(state: TrainState) -> None:
        step(state)
        if state.config.role == "denoiser":
            signal.raise_signal(signal.SIGINT)

    with monkeypatch.context() as patch:
        patch.setattr(TrainState, "step", stop)
        assert reproduce(out, runs) == 128 + signal.SIGINT
    assert "repeat the same command to go on" in capsys.readouterr().out
    assert not RunFolder(out / "denoiser").is_finished()
    assert (out / "denoiser" / "checkpoint.safetensors").exists()
    assert reproduce(out, runs) == 0
    for role in ("noisy", "denoiser", "plain"):
        one, two = (folder / role / "model.safetensors" for folder in (finished, out))
        assert one.read_bytes() == two.read_bytes()
    one, two = (json.loads((folder / "results.json").read_text()) for folder in (finished, out))
    assert one["bits_per_dim"] == two["bits_per_dim"]


def test_a_failing_run_says_why_and_the_finished_one_stays(data: Path, tmp_path: Path) -> None:
    noisy, denoiser, _ = tiny_runs(data, images=32)
    too_fast = replace(denoiser, learning_rate=1e30, clip_norm=None)
    with pytest.raises(NonFiniteLoss, match="the loss is"):
        reproduce(tmp_path / "out", (noisy, too_fast))
    assert RunFolder(tmp_path / "out" / "noisy").is_finished()


@pytest.mark.quick
def test_runs_share_the_budget() -> None:
    runs = runs_to_train(Reproduce(budget=10, seed=3))
    assert [config.role for config in runs] == ["noisy", "denoiser", "plain"]
    assert [config.budget for config in runs] == pytest.approx([4, 4, 2])
    assert {config.seed for config in runs} == {3}
    assert all(config.images is None for config in runs)
    for budget, evaluations in ((0.1, 1), (2.0, 2), (600.0, 8)):  # a short run is scored less often
        runs = runs_to_train(Reproduce(budget=budget, dataset=DataOptions(data_dir=Path("x"))))
        assert [config.evaluations for config in runs[:2]] == [evaluations] * 2
        assert runs[0].data_dir == "x"
    for budget in (0.0, -1.0, float("nan"), float("inf")):
        refuses("budget", runs_to_train, Reproduce(budget=budget))


@pytest.mark.quick
def test_a_result_is_computed_once_for_each_request(tmp_path: Path) -> None:
    path, calls = tmp_path / "result.json", []

    def compute() -> dict[str, Any]:
        calls.append(1)
        return {"value": len(calls), "pair": (1, 2)}

    first = remembered(path, {"seed": 0, "sizes": (8, 8)}, compute)
    assert first == {"asked": {"seed": 0, "sizes": [8, 8]}, "value": 1, "pair": [1, 2]}
    assert remembered(path, {"seed": 0, "sizes": (8, 8)}, compute) == first
    assert remembered(path, {"seed": 0, "sizes": (8, 8)}, compute, again=True)["value"] == 2
    words = r"result.json holds another result: its seed is 0, not 1; choose another folder"
    refuses(words, remembered, path, {"seed": 1, "sizes": (8, 8)}, compute, replace=False)
    assert json.loads(path.read_text())["value"] == 2
    assert remembered(path, {"seed": 1}, compute)["value"] == 3


@pytest.mark.quick
def test_history_forgets_steps_that_a_later_start_took_back(tmp_path: Path) -> None:
    logged = ("start", 0, 0.0), ("step", 8, 1.0), ("step", 24, 3.0), ("start", 8, 0.0)
    rest = {"total": 24, "loss": "bits", "bits_per_dim": 1.5, "images_per_second": 8.0}
    lines = [
        json.dumps({"event": event, "images": images, "seconds": seconds, **rest})
        for event, images, seconds in (*logged, ("step", 16, 1.5))
    ]
    (tmp_path / "log.jsonl").write_text("\n".join([*lines, '{"event": "st']))
    kept = RunFolder(tmp_path).history()
    assert [e["images"] for e in kept if e["event"] == "step"] == [8, 16]
    assert training_seconds(kept) == 2.5


def test_flatten_compares_as_json_does() -> None:
    value = {"a": {"b": (1, 2), "c": None}, "d": "x"}
    assert flatten(value) == flatten(json.loads(json.dumps(value)))
    assert flatten(value) == {"a.b": [1, 2], "a.c": None, "d": "x"}
