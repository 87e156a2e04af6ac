"""What a run costs besides its steps: evaluations of held-out images, and a budget of minutes."""

from __future__ import annotations

import gc
import math
import time
from dataclasses import replace

import torch
from torch import Tensor

from ..config import TrainConfig
from ..data import ImageDataset
from ..distributed import broadcast_int, distributed_map, rank_and_size
from ..sampling import sample_images
from .checkpoint import checkpoint_bytes
from .step import TrainState, make_inputs

# Noise of evaluations never repeats a training draw: training uses repeat 0.
EVALUATION_REPEAT = 1
GRID_IMAGES = 16


@torch.no_grad()
def evaluate(state: TrainState, test_set: ImageDataset) -> float:
    """Bits/dim of the averaged weights on held-out images, by all processes as by one."""
    config = state.config
    n = min(config.evaluation_images, len(test_set))
    model = state.averaged.eval()
    labels = test_set.labels_for(config.model.condition_size)

    def nats_of(first: int) -> float:
        indices = torch.arange(first, min(first + 100, n))
        x = test_set.batch(indices).to(state.device)
        label = None if labels is None else labels[indices].to(state.device)
        inputs = make_inputs(x, config, label, first_index=first, repeat=EVALUATION_REPEAT)
        with state.autocast:
            # Not log_prob: with clean_noise a target has no values of bytes.
            log_p = model.log_prob_given(inputs.target, model(*inputs))
            return -float(log_p.double().sum())

    nats = sum(distributed_map(range(0, n, 100), nats_of))
    return nats / (math.log(2) * n * test_set.images[0].numel())


def sample_grid(state: TrainState, test_set: ImageDataset) -> Tensor:
    """Samples of the averaged weights, for labels and noise of the first held-out images."""
    config = state.config
    height, width = test_set.image_size
    x = test_set.batch(torch.arange(min(GRID_IMAGES, len(test_set)))).to(state.device)
    context = make_inputs(x, config, first_index=0, repeat=EVALUATION_REPEAT).context
    labels = test_set.labels_for(config.model.condition_size)
    return sample_images(
        state.averaged,
        x.shape[0],
        height=height,
        width=width,
        seed=config.seed,
        context=context,
        label=None if labels is None else labels[: x.shape[0]],
    )


def images_within_budget(
    config: TrainConfig,
    train_set: ImageDataset,
    test_set: ImageDataset,
    device: torch.device,
    started: float,
) -> tuple[int, int]:
    """Images and evaluations that fit into a budget of minutes, by timing another state.

    The rates of a run depend on its number of images, so its own steps come too late. started: when
    the run began, by time.monotonic(); its images are read since.
    """
    assert config.budget is not None
    began, first = time.monotonic(), rank_and_size()[0] == 0
    scratch = TrainState(replace(config, images=10**9), train_set, device)
    ends: list[float] = []  # of steps
    while broadcast_int(len(ends) < 4 or ends[-1] - began < min(5.0, 3 * config.budget)):
        scratch.step()
        scratch.results()
        ends.append(time.monotonic())
    # Both the first step and the first picture take longer: they compile and fill caches. The mean
    # of the others, not their median, as on a busy machine a few steps take much of the time.
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
    return steps * config.batch_size, evaluations
