"""Evaluations of held-out images during a run."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..data import ImageDataset
from ..sampling import sample_images
from ..work import batches, map_parts
from .step import TrainState, make_inputs

# Noise of evaluations never repeats a training draw: training uses repeat 0.
EVALUATION_REPEAT = 1
GRID_IMAGES = 16


@torch.no_grad()
def evaluate(state: TrainState, test_set: ImageDataset) -> tuple[float, float]:
    """Bits/dim of the averaged weights on held-out images, by all processes as by one; and the
    effective number of components of a pixel: exp of the mean entropy of their weights."""
    config = state.config
    n = min(config.evaluation_images, len(test_set))
    model, labels = state.averaged.eval(), test_set.labels_for(config.model.classes)

    def sums_of(part: range) -> tuple[float, float]:
        indices = torch.arange(part.start, part.stop)
        x = test_set.batch(indices).to(state.device)
        label = None if labels is None else labels[indices].to(state.device)
        inputs = make_inputs(x, config, label, first_index=part.start, repeat=EVALUATION_REPEAT)
        with state.autocast:
            # Not log_prob: with clean_noise a target has no values of bytes.
            params = model(*inputs)
            log_p = model.log_prob_given(inputs.target, params)
        weights = params[:, : config.model.n_mix].double().softmax(1)
        return -float(log_p.double().sum()), float(torch.special.entr(weights).sum())

    sums = [*map_parts(sums_of, batches(n, 100), in_threads=False)]
    nats, entropy = torch.tensor(sums, dtype=torch.float64).sum(0).tolist()
    dimensions, pixels = test_set.images[0].numel(), math.prod(test_set.image_size)
    return nats / (math.log(2) * n * dimensions), math.exp(entropy / (n * pixels))


def sample_grid(state: TrainState, test_set: ImageDataset) -> Tensor:
    """Samples of the averaged weights, for labels and noise of the first held-out images."""
    config = state.config
    height, width = test_set.image_size
    x = test_set.batch(torch.arange(min(GRID_IMAGES, len(test_set)))).to(state.device)
    context = make_inputs(x, config, first_index=0, repeat=EVALUATION_REPEAT).context
    labels = test_set.labels_for(config.model.classes)
    return sample_images(
        state.averaged,
        x.shape[0],
        height=height,
        width=width,
        seed=config.seed,
        context=context,
        label=None if labels is None else labels[: x.shape[0]],
    )
