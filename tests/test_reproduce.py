"""`dsmooth reproduce`: the whole path once, again, stopped and resumed, and in a wrong folder."""

from __future__ import annotations

import json
import shutil
import signal
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from dsmooth.config import ProbeSettings
from dsmooth.fields import flatten
from dsmooth.files import lock_folder
from dsmooth.reproduce import TrainingPlan, plan_from_preset, reproduce
from dsmooth.reproduce.stages import Sizes
from dsmooth.runs import RunFolder, training_seconds
from dsmooth.training import NonFiniteLoss, train
from tests.helpers.data_makers import refuses
from tests.helpers.rank_processes import ForkedPython, start_ranks, wait_for_all
from tests.helpers.report_checks import check_self_contained, without_plots
from tests.helpers.tiny_runs import tiny

IMAGES = 160
SIZES = Sizes(9, 12, ProbeSettings(train_images=12, test_images=6, epochs=1))


@pytest.fixture(scope="module")
def data(made: Path) -> Path:
    return made / "images"


def tiny_plan(data: Path, images: int = IMAGES, seed: int = 0) -> TrainingPlan:
    given = {"data": "folder", "data_dir": str(data), "dropout": 0.0, "seed": seed}
    sizes = {"warmup_images": 0, "evaluations": 2, "evaluation_images": 4}
    counts = {"noisy": images, "denoiser": images, "plain": 32}
    configs = (tiny(role, images=count, **given, **sizes) for role, count in counts.items())
    return TrainingPlan("tiny", tuple(configs))


@pytest.fixture(scope="module")
def finished(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("once") / "out"
    with without_plots():
        assert reproduce(out, tiny_plan(data), sizes=SIZES) == 0
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
    others = {"images": tiny_plan(data, images=128), "seed": tiny_plan(data, seed=1)}
    for name, plan in others.items():
        with pytest.raises(ValueError, match=f"holds another reproduction: its .*{name} is"):
            reproduce(finished, plan, sizes=SIZES)
    with lock_folder(finished, "someone"), pytest.raises(ValueError, match="is at work in"):
        reproduce(finished, tiny_plan(data), sizes=SIZES)
    (tmp_path / "thesis.tex").write_text("words")
    refuses("holds no reproduction", reproduce, tmp_path, tiny_plan(data))
    with pytest.raises(FileNotFoundError, match="data_dir"):
        reproduce(tmp_path / "out", tiny_plan(tmp_path / "nowhere"))
    with pytest.raises(ValueError, match="only=probes needs trained models, and noisy"):
        reproduce(tmp_path / "out", tiny_plan(data), only="probes")
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.tex"]


SCRIPT = """
import json, sys
from pathlib import Path
from dsmooth.config import ProbeSettings, TrainConfig
from dsmooth.reproduce.stages import Sizes
from dsmooth.report import plots
from dsmooth.reproduce import TrainingPlan, reproduce
plots.png = lambda canvas, **_: b""  # drawing takes most of the time of a report
plan = json.loads(sys.argv[2])["runs"].values()
plan = TrainingPlan("tiny", tuple(map(TrainConfig.from_dict, plan)))
sizes = Sizes(9, 12, ProbeSettings(train_images=12, test_images=6, epochs=1))
sys.exit(reproduce(Path(sys.argv[1]), plan, sizes=sizes, threads=1))
"""


def test_stopped_and_resumed_is_the_uninterrupted_run(finished: Path, data: Path, tmp_path) -> None:
    plan = json.dumps(tiny_plan(data).description())
    out = tmp_path / "stopped"

    def start() -> ForkedPython:
        return ForkedPython(SCRIPT, [str(out), plan], tmp_path, {"OMP_NUM_THREADS": "1"})

    stopped = start()
    log = out / "denoiser" / "log.jsonl"
    deadline = time.monotonic() + 120
    while not (log.exists() and '"start"' in log.read_text()):
        assert time.monotonic() < deadline
        assert stopped.returncode is None
        time.sleep(0.05)
    stopped.send_signal(signal.SIGINT)
    output, _ = stopped.communicate(timeout=120)
    assert stopped.returncode == 128 + signal.SIGINT, output
    assert "repeat the same command to go on" in output
    assert not RunFolder(out / "denoiser").is_finished()
    assert (out / "denoiser" / "checkpoint.safetensors").exists()

    resumed = start()
    wait_for_all([resumed])
    for role in ("noisy", "denoiser", "plain"):
        one, two = (folder / role / "model.safetensors" for folder in (finished, out))
        assert one.read_bytes() == two.read_bytes()
    one, two = (json.loads((folder / "results.json").read_text()) for folder in (finished, out))
    assert one["bits_per_dim"] == two["bits_per_dim"]


@pytest.mark.full
def test_two_processes_reproduce_what_one_does(data: Path, tmp_path, no_plots: None, capfd) -> None:
    """All stages, training included; the models to rounding, the numbers of one model exactly."""
    plan = tiny_plan(data, images=64)
    assert reproduce(tmp_path / "one", plan, sizes=SIZES) == 0
    start = [str(tmp_path / "two"), json.dumps(plan.description())]
    wait_for_all(start_ranks(2, start, tmp_path, SCRIPT))
    for role in ("noisy", "denoiser", "plain"):
        run = RunFolder(tmp_path / "two" / role)
        assert [e["event"] for e in run.read_log()].count("start") == 1
        theirs = load_file(run.weights)
        for name, mine in load_file(RunFolder(tmp_path / "one" / role).weights).items():
            torch.testing.assert_close(theirs[name], mine, rtol=0, atol=1e-4, msg=name)
    one, two = (
        json.loads((tmp_path / name / "results.json").read_text()) for name in ("one", "two")
    )
    assert two.keys() == one.keys()
    assert two["receptive_field"] == one["receptive_field"]
    bounds = [results["bits_per_dim"]["pair"]["conventions"][0]["value"] for results in (one, two)]
    assert bounds[1] == pytest.approx(bounds[0], rel=1e-4)
    # One process measures those models to the same bits.
    for name in ("bits_per_dim.json", "frechet.json"):
        (tmp_path / "two" / name).unlink()
    assert reproduce(tmp_path / "two", plan, sizes=SIZES) == 0
    again = json.loads((tmp_path / "two" / "results.json").read_text())
    assert again["bits_per_dim"] == two["bits_per_dim"]
    assert again["frechet"] == two["frechet"]
    assert "trained already" in capfd.readouterr().out


def test_a_failing_run_says_why_and_the_finished_one_stays(data: Path, tmp_path: Path) -> None:
    noisy, denoiser, _ = tiny_plan(data, images=32).configs
    too_fast = replace(denoiser, learning_rate=1e30, clip_norm=None)
    with pytest.raises(NonFiniteLoss, match="the loss is"):
        reproduce(tmp_path / "out", TrainingPlan("bad", (noisy, too_fast)))
    assert RunFolder(tmp_path / "out" / "noisy").is_finished()


@pytest.mark.full
def test_results_of_other_weights_are_not_kept(finished, data, tmp_path, no_plots) -> None:
    """Results of the model that was in a run's folder are computed again."""
    out, plan = tmp_path / "out", tiny_plan(data)
    shutil.copytree(finished, out)
    shutil.rmtree(out / "noisy")
    train(replace(plan.configs[0], learning_rate=5e-3), out / "noisy")
    assert reproduce(out, plan, sizes=SIZES, only="receptive-field") == 0
    assert "bits_per_dim" not in json.loads((out / "results.json").read_text())

    assert reproduce(out, plan, sizes=SIZES) == 0
    samples = [path.name for path in (finished / "samples").glob("*.npz")]
    pairs = {name: [f / "samples" / name for f in (finished, out)] for name in samples}
    kept = {name for name, (old, new) in pairs.items() if old.read_bytes() == new.read_bytes()}
    assert kept == {"plain.npz"}
    old, new = (
        json.loads((folder / "bits_per_dim.json").read_text()) for folder in (finished, out)
    )
    assert old["pair"]["noisy"] != new["pair"]["noisy"]
    assert old["pair"]["denoiser"] == new["pair"]["denoiser"]
    assert old["plain"] == new["plain"]


@pytest.mark.quick
def test_plan_shares_the_budget() -> None:
    plan = plan_from_preset("mnist-quick", budget=10, seed=3)
    assert [config.role for config in plan.configs] == ["noisy", "denoiser", "plain"]
    assert [config.budget for config in plan.configs] == pytest.approx([4, 4, 2])
    assert {config.seed for config in plan.configs} == {3}
    assert all(config.images is None for config in plan.configs)
    for budget, evaluations in ((0.1, 1), (2.0, 2), (600.0, 8)):  # a short run is scored less often
        configs = plan_from_preset("mnist-quick", budget=budget).configs
        assert [config.evaluations for config in configs[:2]] == [evaluations] * 2
    for budget in (0.0, -1.0, float("nan"), float("inf")):
        refuses("budget", plan_from_preset, "mnist-quick", budget=budget)


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
