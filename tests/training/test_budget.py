"""A budget of minutes: a run ends with it, and is a function of the settings that it stores."""

from __future__ import annotations

import gc
import itertools
import signal
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from dsmooth.runlog import HeldOut
from dsmooth.runs import RunFolder
from dsmooth.training import Evaluation, budget, checkpoint, loop, train
from dsmooth.training.checkpoint import Checkpoint
from dsmooth.training.resolve import resume_settings
from dsmooth.training.step import StepResult, TrainState
from tests.helpers.tiny_runs import assert_same_end, tiny

pytestmark = pytest.mark.usefixtures("small_runs")


class Clock:
    """The time in a test: what takes time adds it."""

    def __init__(self) -> None:
        self.now = 0.0

    def after(
        self, seconds: float | Callable[[], float], function: Callable[..., Any]
    ) -> Callable[..., Any]:
        def call(*args: object, **options: object) -> object:
            self.now += seconds() if callable(seconds) else seconds
            return function(*args, **options)

        return call


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """Reading the images, building a state, evaluating and saving take seconds; the first picture
    takes longer."""
    clock, patch = Clock(), monkeypatch.setattr
    picture_seconds = itertools.chain([1.2], itertools.repeat(0.2))

    def grid(*_: object) -> Tensor:
        clock.now += next(picture_seconds)
        return torch.zeros(4, 1, 8, 8)

    patch(time, "monotonic", lambda: clock.now)
    patch(TrainState, "__init__", clock.after(0.3, TrainState.__init__))
    for module in (budget, loop):
        patch(module, "evaluate", clock.after(0.7, lambda *_: 1.0))
        patch(module, "sample_grid", grid)
    for module in (budget, checkpoint):
        patch(module, "checkpoint_bytes", clock.after(0.1, module.checkpoint_bytes))
    patch(loop, "load_data", clock.after(3.0, loop.load_data))
    return clock


# What a step takes after a part of the budget, in tenths of a second.
PACES: dict[str, Callable[[float], float]] = {
    "constant": lambda part: 1,
    "twice as slow from the middle on": lambda part: 1 + (part > 0.5),
    "twice as slow at the end": lambda part: 1 + (part > 0.93),
    "twice as fast from the middle on": lambda part: 1 / (1 + (part > 0.5)),
    "slow at first": lambda part: 1 + 4 * (part < 0.3),
}


@pytest.mark.grid
@pytest.mark.parametrize("minutes", [0.5, 2.0, 10.0])
@pytest.mark.parametrize("pace", PACES)
def test_a_run_ends_with_its_budget(minutes, pace, clock, tmp_path, monkeypatch) -> None:
    """Within 5 %, whatever its steps take. One in three takes four times as long as the others, and
    the first one longer."""
    turns, seconds = itertools.cycle([0.5, 0.5, 2.0]), 60 * minutes

    def step(self: TrainState) -> None:
        clock.now += 0.1 * next(turns) * PACES[pace](clock.now / seconds) + (self.steps == 0)
        self.steps += 1
        self.images_seen += self.config.batch_size

    result = StepResult(0, 1.0, 1.0, 0.1)
    monkeypatch.setattr(TrainState, "step", step)
    monkeypatch.setattr(TrainState, "results", lambda _: [result])
    train(tiny(evaluations=8, images=None, budget=minutes), tmp_path)
    assert clock.now == pytest.approx(seconds, rel=0.05)
    run = RunFolder(tmp_path)
    config, images = run.read_config()[0], [e.images for e in run.read_log() if type(e) is HeldOut]
    # Of a second each, a fifth of the time.
    assert len(images) == config.evaluations == min(8, int(seconds / 5))
    assert images[-1] == config.images


def test_the_stored_settings_determine_the_weights(clock, tmp_path, monkeypatch) -> None:
    """Of a run whose end was corrected, stopped or not. The state that measured the speed is gone,
    from a GPU's memory too, before that of the run."""
    slower = clock.after(lambda: 5.0 if clock.now < 30 else 10.0, TrainState.step)
    monkeypatch.setattr(TrainState, "step", slower)
    config = tiny(evaluations=2, images=None, budget=1.5, optimizer="muon")

    def middle(evaluation: Evaluation) -> None:
        assert sum(type(thing) is TrainState for thing in gc.get_objects()) == 1
        if stops and clock.now < 75:
            signal.raise_signal(signal.SIGTERM)

    for stops in (False, True):
        clock.now, run, again = 0.0, tmp_path / f"run-{stops}", tmp_path / f"again-{stops}"
        gc.disable()
        try:
            result = train(config, run, on_evaluation=middle)
        finally:
            gc.enable()
        assert (result.interrupted is not None) == stops
        corrections = RunFolder(run).read_config()[0].earlier_images
        train(config, run, resume=True)
        stored = RunFolder(run).read_config()[0]
        assert stored.earlier_images == corrections
        assert stored.images < min(images for _, images in corrections)
        train(replace(stored, budget=None), again)
        assert_same_end(run, again)


def test_a_run_is_extended_though_its_end_was_the_same_before() -> None:
    """The settings in the folder may be of another moment than the checkpoint; those of a user are
    not."""
    moves = (8, 80), (16, 64)
    stored = tiny(images=80, budget=1.0, earlier_images=moves)
    finished = Checkpoint(Path("run") / "checkpoint", {}, stored, 80, 10, "")
    for images, earlier, expected in (
        (160, (), 160),  # from a user
        (80, moves, 80),  # from the folder, as the next two
        (64, moves[:1], 80),
        (96, (*moves, (24, 80)), 80),
    ):
        config = replace(stored, images=images, earlier_images=earlier)
        assert resume_settings(config, finished).images == expected
