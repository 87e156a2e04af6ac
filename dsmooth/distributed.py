"""Collectives of the processes that torchrun started, over gloo on the CPU.

When a process ends, its connections close, and the others notice at their next exchange.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from .fields import check_number
from .files import guarded, writing_nothing
from .progress import silence

# How long a process waits for the others, at the start and at an exchange, which some processes
# reach later. At an exchange it does not wait for a process that has ended.
EXCHANGE = timedelta(minutes=30)
T = TypeVar("T")


class ProcessLost(ConnectionError):
    """Another process of this call has ended or does not respond."""


def rank_and_size() -> tuple[int, int]:
    """This process among those that torchrun started: (RANK, WORLD_SIZE), (0, 1) without it.

    Raises ValueError for values that torchrun does not set.
    """
    with guarded("RANK or WORLD_SIZE", "a whole number"):
        rank, size = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    check_number("RANK", rank, 0, size - 1)
    return rank, size


@contextmanager
def process_group() -> Iterator[None]:
    """Connect the processes that torchrun started, until the outermost such block ends.

    Enter it before code that may fail in a single process. The first process writes files and
    prints, the others do neither. Raises ProcessLost if another process is gone.
    """
    rank, size = rank_and_size()
    with ExitStack() as stack:
        if size > 1 and not dist.is_initialized():
            with _exchange():
                dist.init_process_group("gloo", timeout=EXCHANGE)
            stack.callback(dist.destroy_process_group)
            if rank > 0:
                stack.enter_context(writing_nothing())
                stack.enter_context(silence())
        yield


@contextmanager
def _exchange() -> Iterator[None]:
    """Raise ProcessLost for an error of the exchange inside: its backends raise RuntimeError."""
    try:
        yield
    except RuntimeError as error:
        reason = str(error).splitlines()[0]
        raise ProcessLost(
            f"rank {rank_and_size()[0]}: another process ended or did not respond ({reason}); the "
            "failed process says why. Repeat the command to resume"
        ) from error


def device_group(device: torch.device) -> Any:
    """The processes, for `add_up` of tensors on a device. All processes call this."""
    if rank_and_size()[1] == 1 or device.type == "cpu":
        return None  # gloo
    with _exchange():
        return dist.new_group(backend="nccl", timeout=EXCHANGE)  # from GPU to GPU


def add_up(tensor: torch.Tensor, group: Any) -> None:
    """Make a tensor the sum of those of all processes. All processes call this."""
    if rank_and_size()[1] > 1:
        with _exchange():
            dist.all_reduce(tensor, group=group)


def gather(value: T) -> list[T]:
    """The values of all processes, by rank. They are pickled, with tensors on the CPU.

    All processes call this.
    """
    size = rank_and_size()[1]
    if size == 1:
        return [value]
    values: list[Any] = [None] * size
    with _exchange():
        dist.all_gather_object(values, value)
    return values


def from_first(compute: Callable[[], T]) -> T:
    """What `compute` returns, or raises, in the first process. All processes call this."""
    value, error = None, None
    if rank_and_size()[0] == 0:
        try:
            value = compute()
        except (OSError, ValueError) as raised:
            error = raised
    value, error = gather((value, error))[0]
    if error is not None:
        raise error
    return value  # type: ignore[return-value] # it is what `compute` returned
