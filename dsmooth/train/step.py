"""One update as a function of tensors on the device: nothing is read back, nothing is sent.

The position in the stream of images, from which the batch, the noise, the dropout and the learning
rate follow, is a tensor too, and a step moves it on. So steps need no word from the host, and can
be replayed as a CUDA graph.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..config import TrainConfig
from ..philox import Stream, image_words
from ..smoothing import GaussianSmoothing, make_smoothing

KERNEL_RATE = 1.1
LEAST_STEPS = 100


class Inputs(NamedTuple):
    """What a network is trained on: the target, and what it is given, None for what it has not.

    target, context: (B, C, H, W). label, level: (B,) int64.
    """

    target: Tensor
    context: Tensor | None = None
    label: Tensor | None = None
    level: Tensor | None = None

    def rows(self, rows: slice) -> Inputs:
        """The same of some images."""
        given = (None if part is None else part[rows] for part in self[1:])
        return Inputs(self.target[rows], *given)


def make_inputs(
    x: Tensor,
    config: TrainConfig,
    label: Tensor | None = None,
    *,
    first_index: int | Tensor,
    repeat: int = 0,
) -> Inputs:
    """What a role is trained on, for clean images x (B, C, H, W) and their labels.

    The noise of row b, and its level, are functions of (config.seed, first_index + b, repeat).
    """
    if config.role == "plain":
        return Inputs(x, None, label)
    where: dict[str, Any] = {"seed": config.seed, "first_index": first_index, "repeat": repeat}
    level = draw_levels(x, config, **where) if config.model.noise_levels else None
    if level is None:
        x_tilde = make_smoothing(config.smoothing, config.scale).sample(x, **where)
    else:
        scales = x.new_zeros(x.shape[0])
        for i, scale in enumerate(config.model.noise_levels):
            scales = torch.where(level == i, scale, scales)
        noise = GaussianSmoothing(1.0).sample(torch.zeros_like(x), **where)
        x_tilde = x + scales.view(-1, 1, 1, 1) * noise
    if config.role == "noisy":
        return Inputs(x_tilde, None, label, level)
    if config.clean_noise:
        x = GaussianSmoothing(config.clean_noise, Stream.CLEAN_NOISE).sample(x, **where)
    return Inputs(x, x_tilde, label, level)


def draw_levels(x: Tensor, config: TrainConfig, **where: Any) -> Tensor:
    """The place of each image's noise among the model's levels, evenly: (B,) int64.

    where: seed, first_index and repeat of x.
    """
    words = image_words(x.shape[0], 1, stream=Stream.LEVEL, device=x.device, **where)
    return words[:, 0, 0] * len(config.model.noise_levels) >> 32


def dropout_seed(config: TrainConfig, images_seen: Tensor) -> Tensor:
    """The seed of a step's dropout: int64 without dimensions, where `images_seen` is.

    The first two words of Philox at counter (0, images seen low, images seen high, DROPOUT).
    """
    words = image_words(
        1,
        1,
        seed=config.seed,
        first_index=images_seen,
        stream=Stream.DROPOUT,
        device=images_seen.device,
    )
    return words[0, 0, 0] | words[0, 0, 1] << 32


def kernel_rate(config: TrainConfig) -> float:
    """Muon's peak angle in radians; without one of its own, a run's follows from its steps."""
    if config.kernel_rate is not None:
        return config.kernel_rate
    if config.images is None:
        raise ValueError("images is not fixed yet")
    steps = (config.images - config.schedule_from) / config.batch_size
    return KERNEL_RATE * max(LEAST_STEPS, steps) ** -0.5


def scheduled(peak: float, config: TrainConfig, images_seen: Tensor, steps: Tensor) -> Tensor:
    """A rate of the step after so many images and steps: float64, no dimensions."""
    if config.images is None:
        raise ValueError("images is not fixed yet")
    seen = images_seen.double() - config.schedule_from
    warm = ((seen + config.batch_size) / max(1, config.warmup_images)).clamp(max=1)
    rate = peak * warm
    if config.schedule == "exponential":
        return rate * torch.pow(config.learning_rate_decay, steps.double())
    done = (seen / (config.images - config.schedule_from)).clamp(max=1)
    if config.schedule == "cooldown":
        return rate * ((1 - done) / config.cooldown).clamp(max=1)
    return rate * 0.5 * (1 + torch.cos(math.pi * done))
