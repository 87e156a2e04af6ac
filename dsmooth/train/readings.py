"""What steps leave behind for the log: numbers on the device, read now and then."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from ..distributed import exchange, rank_and_size

# The latest that a loss that is not finite is found: after so many more steps.
READ_STEPS = 50


class NonFiniteLoss(ArithmeticError):
    """The loss became infinite or NaN."""


class Reading(NamedTuple):
    """One step: its number, its loss in bits/dim, its gradient's norm before clipping, its rate."""

    step: int
    loss: float
    gradient_norm: float
    learning_rate: float

    def is_finite(self) -> bool:
        """Whether the step may count."""
        return math.isfinite(self.loss) and math.isfinite(self.gradient_norm)


class Readings:
    """The last READ_STEPS steps, on `device`. Step n has row n % READ_STEPS."""

    def __init__(self, device: torch.device) -> None:
        on_cuda = device.type == "cuda"
        self.rows = torch.zeros(READ_STEPS, 3, dtype=torch.float64, device=device)
        self.copy = torch.zeros(READ_STEPS, 3, dtype=torch.float64, pin_memory=on_cuda)

    def write(self, step: Tensor, loss: Tensor, norm: Tensor, rate: Tensor) -> None:
        """Note a step; all without dimensions, on the device, and nothing waits for them."""
        row = torch.stack([loss.double(), norm.double(), rate.double()])
        self.rows.index_copy_(0, (step % READ_STEPS).view(1), row.view(1, 3))

    def read(self, first: int, end: int) -> list[Reading]:
        """Steps first .. end - 1, at most the last READ_STEPS, once the device has made them.

        All processes call this together.
        """
        self.copy.copy_(self.rows, non_blocking=True)
        if self.rows.is_cuda:
            torch.cuda.current_stream(self.rows.device).synchronize()
        size = rank_and_size()[1]
        if size > 1:  # the loss is that of a share; the norm and the rate are the batch's
            losses = self.copy[:, 0].contiguous()
            with exchange():
                dist.all_reduce(losses)
            self.copy[:, 0] = losses / size
        rows = self.copy.tolist()
        steps = range(max(first, end - READ_STEPS), end)
        return [Reading(step, *rows[step % READ_STEPS]) for step in steps]
