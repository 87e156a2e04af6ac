"""The settings of runs: presets, what the command sets, budgets; every preset trains a step."""

from __future__ import annotations

import gc
import itertools
import json
import math
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import dsmooth
from dsmooth.commands.options import setting_of_text
from dsmooth.commands.train import next_step
from dsmooth.config import OWN, Role, TrainConfig
from dsmooth.fields import check_one_of
from dsmooth.files import structured
from dsmooth.presets import FINE_TUNING, PRESETS, preset, with_settings
from dsmooth.pretrained.log import HeldOut
from dsmooth.pretrained.runs import RunFolder
from dsmooth.training import Evaluation, loop, plan, train
from dsmooth.training.checkpoint import Checkpoint
from dsmooth.training.evaluation import evaluate
from dsmooth.training.plan import as_stored, check_continues, fill_in
from dsmooth.training.step import StepResult, TrainState, scheduled
from tests.helpers.command_runs import settings_of
from tests.helpers.data_makers import random_dataset, refuses
from tests.helpers.tiny_runs import ROLES, tiny

CPU = torch.device("cpu")


@pytest.mark.quick
@pytest.mark.parametrize(
    ("words", "factors"),
    [
        ("pair --data mnist", [1.0, 1.0]),
        ("pair --data mnist --init mnist", [FINE_TUNING, FINE_TUNING]),
        ("pair --data mnist --init mnist --learning-rate 0.032", [1.0, 1.0]),
    ],
)
def test_a_run_from_given_weights_has_smaller_rates(capsys, words, factors) -> None:
    """Unless it is given rates: in the command, and in Python."""
    printed = settings_of(capsys, f"{words} --images 9")
    assert [settings["rate_factor"] for settings in printed.values()] == factors
    assert preset("mnist", "noisy", init="mnist").rate_factor == FINE_TUNING
    assert preset("mnist", "noisy", init="mnist", kernel_rate=0.02).rate_factor == 1
    config = preset("mnist", "noisy", images=9)
    slow = replace(config, rate_factor=FINE_TUNING)
    assert scheduled(2.0, slow, 4, 1) == pytest.approx(FINE_TUNING * scheduled(2.0, config, 4, 1))


@pytest.mark.parametrize("role", ROLES)
@pytest.mark.parametrize("classes", [False, True])
def test_the_next_command_draws_each_class_of_a_model(role: Role, classes: bool) -> None:
    """Where a command draws."""
    config = preset("mnist-quick", role, classes=classes)
    advice = next_step({RunFolder("the/run"): config})
    assert "the/run" in advice
    assert ("--label each" in advice) == classes


@pytest.mark.quick
@pytest.mark.parametrize(
    ("text", "name", "value"),
    [
        ("ema=0.5", "ema", 0.5),
        ("clip-norm=2", "clip_norm", 2.0),
        ("clip_norm=None", "clip_norm", None),
        ("betas=[0.5, 0.7]", "betas", (0.5, 0.7)),
        ("data_init=false", "data_init", False),
        ("schedule=cooldown", "schedule", "cooldown"),
        ("data_dir=7", "data_dir", "7"),
        ("atoms=all", "atoms", "all"),
    ],
)
def test_a_setting_is_read_by_its_type(text: str, name: str, value: object) -> None:
    assert setting_of_text(text) == (name, value)
    assert with_settings(preset("mnist", "denoiser"), dict([setting_of_text(text)]))


def continued(asked: TrainConfig, stored: TrainConfig) -> TrainConfig:
    """The settings with which a run continues that another call asks for."""
    data = random_dataset(12)
    config = fill_in(as_stored(asked, stored), data, data, CPU)
    checkpoint = Checkpoint(Path("run/checkpoint"), {}, 8, 1, data.digest, None)
    check_continues(RunFolder("run"), stored, checkpoint, config, data)
    return config


@pytest.mark.quick
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"images": 64}, "its images is 40, not 64"),
        ({"images": None, "budget": 4.0}, "its budget is 2.0, not 4.0"),
        ({"init": "other"}, "its init is None, not other"),
        ({"seed": 5}, r"its seed is 0, not 5; to begin a new one .* set `init=run`$"),
        ({"model": tiny(dropout=0.0).model}, r"its model\.dropout is 0\.3, not 0\.0"),
        ({"data": OWN}, "its data is mnist, not own"),
    ],
)
def test_another_run_is_not_continued(change: dict[str, object], message: str) -> None:
    """The first setting that differs is named, with both values."""
    stored = tiny(budget=2.0)
    refuses(f"^run holds another run: {message}", continued, replace(stored, **change), stored)


@pytest.mark.quick
def test_what_is_left_open_is_the_runs_own() -> None:
    stored = tiny("plain", budget=2.0, evaluations=5)
    for change in (
        {"images": None, "evaluations": 8},
        {"budget": None, "images": None},
        {"precision": "auto"},
        {"evaluations": 3, "graph": "off", "data_dir": "elsewhere"},
    ):
        config = continued(replace(stored, **change), stored)
        assert config.evaluations == min(5, change.get("evaluations", 5))
    assert continued(replace(stored, labels="b.npz"), replace(stored, labels="a.npz"))


def test_colours_have_no_atoms_and_features_of_bytes() -> None:
    config = tiny("plain")
    config = replace(config, model=replace(config.model, atoms="all", fourier_features=2))
    for channels, expected in ((1, ("all", 2)), (3, ((), 0))):
        data = random_dataset(12, channels=channels)
        model = fill_in(config, data, data, CPU).model
        assert (model.atoms, model.fourier_features) == expected


class Clock:
    """The time in a test: what takes time adds it."""

    def __init__(self) -> None:
        self.now = 0.0

    def after(self, seconds: float, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: object, **options: object) -> object:
            self.now += seconds
            return function(*args, **options)

        return call


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """Reading the images, building a state and evaluating take seconds; the first picture
    takes longer."""
    clock, patch = Clock(), monkeypatch.setattr
    picture_seconds = itertools.chain([1.2], itertools.repeat(0.2))

    def grid(*_: object) -> Tensor:
        clock.now += next(picture_seconds)
        return torch.zeros(4, 1, 8, 8)

    patch(time, "monotonic", lambda: clock.now)
    patch(TrainState, "__init__", clock.after(0.3, TrainState.__init__))
    for module in (loop, plan):
        patch(module, "evaluate", clock.after(0.7, lambda *_: (1.0, 1.0)))
        patch(module, "sample_grid", grid)
    patch(plan, "load_data", clock.after(3.0, plan.load_data))
    return clock


@pytest.mark.parametrize("minutes", [0.5, 5.0])
@pytest.mark.usefixtures("small_runs")
def test_a_run_ends_with_its_budget(minutes, clock, tmp_path, monkeypatch) -> None:
    """Within 15 %, though one step in three takes four times as long as the others, and the first
    one longer."""
    turns, seconds = itertools.cycle([0.5, 0.5, 2.0]), 60 * minutes

    def step(self: TrainState) -> None:
        clock.now += 0.1 * next(turns) + (self.steps == 0)
        self.steps += 1
        self.images_seen += self.config.batch_size

    result = StepResult(0, 1.0, 1.0, 0.1)
    monkeypatch.setattr(TrainState, "step", step)
    monkeypatch.setattr(TrainState, "results", lambda _: [result])

    def count(_: Evaluation) -> None:
        states.append(sum(type(thing) is TrainState for thing in gc.get_objects()))

    states: list[int] = []
    train(tiny(evaluations=8, images=None, budget=minutes), tmp_path, on_evaluation=count)
    assert set(states) == {1}  # in memory
    assert clock.now == pytest.approx(seconds, rel=0.15)
    run = RunFolder(tmp_path)
    config, images = run.read_config()[0], [e.images for e in run.read_log() if type(e) is HeldOut]
    # Of 0.9 seconds each, a fifth of the time.
    assert len(images) == config.evaluations == min(8, int(seconds / 5 / 0.9))
    assert images[-1] == config.images > 80 * 0.5 * seconds  # timing takes little of it


@pytest.mark.quick
def test_a_budget_takes_the_place_of_the_images() -> None:
    """Both together are refused."""
    assert preset("mnist", "noisy").images == 3_000_000
    timed = preset("mnist", "noisy", budget=2.0)
    assert timed.images is None
    # As of the config.json of a run.
    assert with_settings(replace(timed, images=64), {"images": 8}).budget is None
    with pytest.raises(ValueError, match="`images` and `budget` both say how long the run is"):
        preset("mnist", "noisy", budget=2.0, images=64)


@pytest.mark.quick
def test_an_error_names_few_of_many() -> None:
    names = [f"cluster {number}" for number in range(30)]
    for name in ("cluster 99", "dog"):
        with pytest.raises(ValueError, match="must be one of 30 names, such as cluster ") as error:
            check_one_of("label", name, names)
        assert str(error.value).count("cluster") <= 6


@pytest.mark.quick
def test_fields_of_a_model_that_is_given_are_replaced() -> None:
    own = dsmooth.ModelConfig(n_filters=8, n_mix=3)
    assert preset("mnist", "noisy", model=own, n_filters=6, likelihood="gaussian").model == replace(
        own, n_filters=6, likelihood="gaussian"
    )
    for more in ({}, {"n_filters": 6}):
        with pytest.raises(ValueError, match=r"`model` must be a ModelConfig, got {}"):
            preset("mnist", "noisy", model={}, **more)


@pytest.mark.quick
@pytest.mark.parametrize(
    ("name", "given", "value"),
    [
        ("betas", [0.25, 0.5], (0.25, 0.5)),
        ("betas", np.array([0.25, 0.5], np.float32), (0.25, 0.5)),
        ("flip", np.asarray(True)[()], True),
        ("images", np.asarray(20_000)[()], 20_000),
        ("images", torch.tensor(20_000), 20_000),
        ("learning_rate", np.asarray(0.25)[()], 0.25),
        ("data_dir", Path("a"), "a"),
    ],
)
def test_settings_are_what_json_has(name: str, given: object, value: object) -> None:
    """Lists become tuples, numpy's numbers Python's."""
    made, expected = (replace(TrainConfig(), **{name: x}) for x in (given, value))
    assert (made, hash(made)) == (expected, hash(expected))
    assert json.dumps(asdict(made)) == json.dumps(asdict(expected))
    assert structured(asdict(made), TrainConfig, "") == made


@pytest.mark.grid
@pytest.mark.parametrize("role", ROLES)
@pytest.mark.parametrize("name", PRESETS)
def test_preset_trains_a_step(name: str, role: str) -> None:
    small = {"n_filters": 4, "n_resnet": 1, "n_mix": 2, "context_layers": 1}
    config = preset(name, role, **small, images=64, batch_size=8, precision="float32")
    data = random_dataset(16, channels=config.model.image_channels)
    state = TrainState(config, data, torch.device("cpu"))
    state.step()
    (reading,) = state.results()
    assert math.isfinite(reading.loss)
    assert reading.gradient_norm > 0
    assert (state.average is None) == (config.ema == 0)
    assert math.isfinite(evaluate(state, data)[0])


def test_presets_build_at_full_size() -> None:
    for name, role in itertools.product(PRESETS, ROLES):
        with torch.device("meta"):
            model = dsmooth.PixelCNNpp(preset(name, role).model)
        assert sum(p.numel() for p in model.parameters()) > 100_000
