"""Exponential moving average of weights."""

from __future__ import annotations

import copy
from typing import Generic, TypeVar

import torch
from torch import Tensor, nn

Model = TypeVar("Model", bound=nn.Module)


class EMA(Generic[Model]):
    """A second copy of a model that follows its weights with decay min(0.9995, (1+n)/(10+n)).

    n counts updates from 0. Start it after the data-dependent init; evaluate and sample with
    `model`, which is in evaluation mode and takes no gradient.
    """

    def __init__(self, model: Model, max_decay: float = 0.9995) -> None:
        self.model: Model = copy.deepcopy(model).eval().requires_grad_(False)
        self.max_decay = max_decay
        self.n_updates = 0

    def decay(self) -> float:
        """The decay that the next update uses."""
        return min(self.max_decay, (1 + self.n_updates) / (10 + self.n_updates))

    @torch.no_grad()
    def update(self, model: Model) -> None:
        """Move the average towards the weights of `model`."""
        average: list[Tensor] = list(self.model.parameters())
        current: list[Tensor] = [p.detach() for p in model.parameters()]
        torch._foreach_lerp_(average, current, 1 - self.decay())
        self.n_updates += 1
