"""A linear softmax classifier on features, and its accuracy on others."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import IO

import torch
from torch import Tensor
from torch.optim.adam import adam

from ..data import epoch_order
from ..results import ProbeScore
from ..work import batches

# The last training images choose among probes. HELD_OUT is their share of all training images,
# HELD_OUT_PASSES the share of the passes after which probes are compared on them.
HELD_OUT, HELD_OUT_PASSES = 1 / 6, 1 / 4
# Images at a time, and of a step. A step takes fewer if an epoch would otherwise have
# fewer than STEPS_PER_EPOCH steps.
STEP_IMAGES = 100
STEPS_PER_EPOCH = 10
# A step of Adam moves every weight by about its rate, and so a sum over D features by up to about
# D / 2 rates: the rate that suits every D is this number over D.
STEP_OF_A_LOGIT = 3.0
# torch.optim.Adam without the class, which imports torch's compiler and so takes two seconds.
adam_step = partial(
    adam,
    beta1=0.9,
    beta2=0.999,
    eps=1e-8,
    weight_decay=0.0,
    amsgrad=False,
    maximize=False,
    fused=True,
)


@dataclass(frozen=True)
class FeatureFile:
    """Features of the images `rows`, (N, D) float16 in a file, read with the methods of a tensor.

    width: D. Memory holds only the rows that are in use.
    """

    file: IO[bytes]
    rows: range
    width: int

    @property
    def shape(self) -> tuple[int, int]:
        """(N, D)."""
        return len(self.rows), self.width

    def __getitem__(self, part: slice) -> FeatureFile:
        return FeatureFile(self.file, self.rows[part], self.width)

    def index_select(self, dim: int, index: Tensor) -> Tensor:
        """Some rows."""
        values = torch.empty(len(index), self.width, dtype=torch.float16)
        for row, number in zip(values.numpy(), index.tolist(), strict=True):
            os.preadv(self.file.fileno(), [row], self.rows[number] * row.nbytes)
        return values

    def split(self, size: int) -> Iterator[Tensor]:
        """All rows, in parts."""
        return (self.index_select(0, torch.tensor(part)) for part in batches(len(self.rows), size))


# Features (N, D) float16, on the CPU or in a file, and labels (N,) int64.
Labelled = tuple[Tensor | FeatureFile, Tensor]


def probe_features(
    train: Labelled,
    test: Labelled,
    classes: int,
    *,
    epochs: int,
    seed: int = 0,
    device: torch.device | str = "cpu",
) -> ProbeScore:
    """The accuracy of a linear classifier of labels 0 .. classes - 1 by features. N >= 2."""
    fit = partial(train_linear, classes=classes, seed=seed, device=device)
    accuracy, error, train_accuracy = fit(train, test, epochs=epochs)
    first = len(train[1]) - max(1, round(HELD_OUT * len(train[1])))
    x, labels = train
    few = math.ceil(HELD_OUT_PASSES * epochs)
    held_out, _, _ = fit((x[:first], labels[:first]), (x[first:], labels[first:]), epochs=few)
    return ProbeScore(accuracy, error, train_accuracy, x.shape[1], held_out)


def train_linear(
    train: Labelled,
    test: Labelled,
    classes: int,
    *,
    epochs: int,
    seed: int = 0,
    device: torch.device | str = "cpu",
) -> tuple[float, float, float]:
    """Accuracy on `test`, its standard error, and accuracy on `train`, after `epochs` passes.

    Minibatch Adam lowers the cross-entropy of softmax(W z + b). z are the features minus their mean
    over the training images, scaled as `moments` says. W and b start at 0. The order of images is a
    function of the seed, and so is the result, with the same number of threads.
    """
    mean, scale = moments(train[0], device)
    parameters, gradient, first, second = torch.zeros(4, classes, len(mean) + 1, device=device)
    weight, bias = parameters[:, :-1], parameters[:, -1]
    counts = [torch.zeros((), device=device)]  # of steps
    space = torch.empty(STEP_IMAGES, len(mean), device=device)

    def centred(features: Tensor) -> Tensor:  # until the next call
        return space[: len(features)].copy_(features).sub_(mean)

    def logits(z: Tensor) -> Tensor:  # (classes, B), faster than its transpose
        return torch.addmm(bias.unsqueeze(1), weight * scale, z.T)

    features, labels = train
    n = len(labels)
    batch = max(1, min(STEP_IMAGES, n // STEPS_PER_EPOCH))
    steps = -(-n // batch)
    for epoch in range(epochs):
        order = epoch_order(n, epoch, seed)
        for start in range(0, n, batch):
            rows = order[start : start + batch].sort().values  # memory is read forwards
            z = centred(features.index_select(0, rows))
            # Gradient of the mean cross-entropy: (softmax - one-hot) / B times the scaled features.
            slope = logits(z).softmax(0)
            slope[labels[rows], torch.arange(len(rows))] -= 1
            slope /= len(rows)
            torch.mul(slope @ z, scale, out=gradient[:, :-1])
            torch.sum(slope, 1, out=gradient[:, -1])
            done = (epoch * steps + start // batch) / (epochs * steps)
            rate = STEP_OF_A_LOGIT / len(mean) * (1 + math.cos(math.pi * done)) / 2
            adam_step([parameters], [gradient], [first], [second], [], counts, lr=rate)

    def accuracy(data: Labelled) -> float:
        parts = data[0].split(STEP_IMAGES)
        chosen = torch.cat([logits(centred(part)).argmax(0).cpu() for part in parts])
        return float((chosen == data[1]).double().mean())

    right, m = accuracy(test), len(test[1])
    return right, (right * (1 - right) / m) ** 0.5, accuracy(train)


def moments(features: Tensor | FeatureFile, device: torch.device | str) -> tuple[Tensor, Tensor]:
    """Mean and scale of each feature, (D,) float32 on `device`.

    The scale is 1 / sqrt(variance + mean variance of all features), half-way between standardised
    features and one scale for all: little variation is mostly noise in some blocks only.
    """
    total, squares = torch.zeros(2, features.shape[1], dtype=torch.float64)
    # Float32 is enough for the sums of a part about a mean that is nearly the mean of all.
    n = features.shape[0]
    near = next(iter(features.split(STEP_IMAGES))).float().mean(0)
    for part in features.split(STEP_IMAGES):
        values = part.float().sub_(near)
        total += values.sum(0)
        squares += values.square_().sum(0)
    mean = total / n
    variance = (squares / n - mean.square()).clamp(min=0)
    # Every scale is as good where nothing varies at all.
    scale = (variance + variance.mean()).clamp(min=torch.finfo(torch.float32).tiny).rsqrt()
    return (near + mean).float().to(device), scale.float().to(device)
