"""A budget of minutes becomes a number of images."""

from __future__ import annotations

import gc
import itertools
import time
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from dsmooth.pretrained.runs import HeldOut, RunFolder
from dsmooth.training import Evaluation, loop, settings, train
from dsmooth.training.step import StepResult, TrainState
from tests.helpers.tiny_runs import tiny

pytestmark = pytest.mark.usefixtures("small_runs")


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
    for module in (settings, loop):
        patch(module, "evaluate", clock.after(0.7, lambda *_: 1.0))
        patch(module, "sample_grid", grid)
    patch(loop, "load_data", clock.after(3.0, loop.load_data))
    return clock


@pytest.mark.parametrize("minutes", [0.5, 5.0])
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
    assert images[-1] == config.images
