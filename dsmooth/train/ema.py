"""Exponential moving average of weights."""

from __future__ import annotations

import copy
from typing import Generic, TypeVar

import torch
from torch import Tensor, nn

Model = TypeVar("Model", bound=nn.Module)


class EMA(Generic[Model]):
    """A second copy of a model that follows its weights with decay min(0.9995, (1+n)/(10+n)).

    n counts updates from 0, on the device of the weights. Start it after the data-dependent init;
    evaluate and sample with `model`, which is in evaluation mode and takes no gradient.
    """

    def __init__(self, model: Model, max_decay: float = 0.9995) -> None:
        self.model: Model = copy.deepcopy(model).eval().requires_grad_(False)
        self.average: list[Tensor] = list(self.model.parameters())
        self.max_decay = max_decay
        device = self.average[0].device
        self.n_updates = torch.zeros((), dtype=torch.int64, device=device)

    def decay(self) -> Tensor:
        """The decay that the next update uses: float64, no dimensions."""
        n = self.n_updates.double()
        return ((1 + n) / (10 + n)).clamp(max=self.max_decay)

    @torch.no_grad()
    def update(self, model: Model) -> None:
        """Move the average towards the weights of `model`."""
        average = self.average
        current: list[Tensor] = list(model.parameters())
        weight = (1 - self.decay()).to(average[0].dtype)
        if weight.is_cuda:  # all tensors in one launch, which a lerp with such a weight is not
            difference = torch._foreach_sub(current, average)
            torch._foreach_mul_(difference, weight)
            torch._foreach_add_(average, difference)
        else:
            torch._foreach_lerp_(average, current, [weight] * len(average))
        self.n_updates += 1
