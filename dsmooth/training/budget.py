"""A budget of minutes as a number of images: estimated before a run, corrected while it trains."""

from __future__ import annotations

import gc
import time
from dataclasses import replace

import torch

from ..config import TrainConfig
from ..data import ImageDataset
from ..distributed import broadcast_int, rank_and_size
from .checkpoint import checkpoint_bytes
from .evaluation import evaluate, sample_grid
from .step import TrainState, total_images

# A run compares its end with its budget after each such part of the budget, more often towards the
# end, and moves the end if it is further away than the tolerance. So it ends within 5 % even if its
# last steps take twice as long as those before.
INTERVAL = 1 / 20
TOLERANCE = 1 / 100


class Deadline:
    """The end of a run by its budget, which began at `started`, by time.monotonic()."""

    def __init__(self, minutes: float, started: float, evaluation_seconds: float) -> None:
        self.seconds = 60 * minutes
        self.end = started + self.seconds
        self.due = time.monotonic() + INTERVAL * self.seconds  # of the next comparison
        self.evaluation_seconds = evaluation_seconds
        self.paused = 0.0  # by all evaluations
        self.places: list[tuple[int, float]] = []  # images seen, and when, without evaluations

    def is_due(self) -> bool:
        """Whether to compare the end of the run with the budget."""
        return time.monotonic() > self.due

    def evaluated(self, seconds: float) -> None:
        """Note what an evaluation took: the next ones are expected to take as long."""
        self.evaluation_seconds = seconds
        self.paused += seconds

    def correct(self, state: TrainState, evaluations: int) -> None:
        """Set the images of the run to what fits, with so many evaluations; all processes do."""
        now, config, seen = time.monotonic(), state.config, state.images_seen
        interval = min(INTERVAL * self.seconds, (self.end - now) / 2)
        self.due = now + max(TOLERANCE * self.seconds, interval)
        self.places.append((seen, now - self.paused))
        # The speed is that of the later half of the run so far.
        earlier, then = self.places[(len(self.places) - 1) // 2]
        if earlier == seen:
            return
        step = (now - self.paused - then) / (seen - earlier) * config.batch_size
        left = self.end - now - evaluations * self.evaluation_seconds
        images = broadcast_int(seen + max(1, round(left / step)) * config.batch_size)
        error = abs(images - total_images(config)) / config.batch_size * step / self.seconds
        if broadcast_int(error > TOLERANCE):
            past = (*config.earlier_images, (seen, total_images(config)))
            state.config = replace(config, images=images, earlier_images=past)


def images_within_budget(
    config: TrainConfig,
    train_set: ImageDataset,
    test_set: ImageDataset,
    device: torch.device,
    started: float,
) -> tuple[int, int, Deadline]:
    """Images and evaluations that fit into a budget of minutes, by timing another state.

    The rates of a run depend on its number of images, so its own steps come too late. started: when
    the budget began, by time.monotonic().
    """
    assert config.budget is not None
    began, first = time.monotonic(), rank_and_size()[0] == 0
    scratch = TrainState(replace(config, images=10**9), train_set, device)
    ends: list[float] = []  # of steps
    while broadcast_int(len(ends) < 4 or ends[-1] - began < min(5.0, 3 * config.budget)):
        scratch.step()
        scratch.results()
        ends.append(time.monotonic())
    # The first step, picture and evaluation take longer: they compile and fill caches. The mean of
    # the other steps, not their median, as on a busy machine a few steps take much of the time.
    step = (ends[-1] - ends[0]) / (len(ends) - 1)
    if first:
        sample_grid(scratch, test_set)
    before = time.monotonic()
    evaluate(scratch, test_set)
    if first:
        sample_grid(scratch, test_set)
        checkpoint_bytes(scratch)
    cost = time.monotonic() - before
    evaluations = max(1, min(config.evaluations, int(60 * config.budget / (5 * cost))))
    left = 60 * config.budget - evaluations * cost - (time.monotonic() - started)
    evaluations = broadcast_int(evaluations)
    # The state of the run takes about a step.
    steps = broadcast_int(max(1, round(left / step) - 1))
    del scratch
    gc.collect()  # it refers to itself, and a GPU may not hold two states
    return steps * config.batch_size, evaluations, Deadline(config.budget, started, cost)
