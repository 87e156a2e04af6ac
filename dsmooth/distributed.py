"""The processes that torchrun started, connected by gloo on the CPU.

When a process ends, its connections close, and the others notice at their next exchange.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from .fields import check_numbers
from .files import guarded
from .progress import silence

# How long a process waits for the others, at the start and at an exchange, which some processes
# reach later. At an exchange it does not wait for a process that has ended.
EXCHANGE = timedelta(minutes=30)
T = TypeVar("T")


class ProcessLost(ConnectionError):
    """Another process of this call has ended or does not respond."""


@dataclass(frozen=True)
class Group:
    """The processes of one call, and the number of this one. All of them call a method together."""

    rank: int = 0
    size: int = 1
    _tensors: Any = None  # torch's group for `add_up`, by default gloo

    @property
    def writes(self) -> bool:
        """Whether this process writes files and prints: the first one does."""
        return self.rank == 0

    def on(self, device: torch.device) -> Group:
        """These processes, whose `add_up` takes tensors of a device."""
        if self.size == 1 or device.type == "cpu":
            return self
        with self._exchange():  # from GPU to GPU
            return replace(self, _tensors=dist.new_group(backend="nccl", timeout=EXCHANGE))

    def add_up(self, tensor: torch.Tensor) -> None:
        """Make a tensor the sum of those of all processes."""
        if self.size > 1:
            with self._exchange():
                dist.all_reduce(tensor, group=self._tensors)

    def most(self, numbers: Sequence[int]) -> list[int]:
        """The largest of each number over all processes."""
        largest = torch.tensor(numbers)
        if self.size > 1:
            with self._exchange():
                dist.all_reduce(largest, dist.ReduceOp.MAX)
        return largest.tolist()

    def gather(self, value: T) -> list[T]:
        """The values of all processes, by rank. They are pickled, with tensors on the CPU."""
        values: list[Any] = [value] * self.size
        if self.size > 1:
            with self._exchange():
                dist.all_gather_object(values, value)
        return values

    def first(self, compute: Callable[[], T]) -> T:
        """What `compute` returns, or raises, in the first process."""
        value, error = None, None
        if self.writes:
            try:
                value = compute()
            except (OSError, ValueError, ArithmeticError) as raised:
                error = raised
        value, error = self.gather((value, error))[0]
        if error is not None:
            raise error
        return value  # type: ignore[return-value] # it is what `compute` returned

    @contextmanager
    def _exchange(self) -> Iterator[None]:
        """Raise ProcessLost for an error inside: the backends raise RuntimeError."""
        try:
            yield
        except RuntimeError as error:
            reason = str(error).splitlines()[0]
            raise ProcessLost(
                f"rank {self.rank}: another process ended or did not respond ({reason}); the "
                "failed process says why. Repeat the command to resume"
            ) from error


_GROUP: ContextVar[Group | None] = ContextVar("group", default=None)


def group() -> Group:
    """The processes that compute here: those of `process_group`, outside of it this one."""
    return _GROUP.get() or Group()


@contextmanager
def process_group() -> Iterator[Group]:
    """Connect the processes that torchrun started, until the outermost such block ends.

    Enter it before code that may fail in a single process. Raises ProcessLost if another process is
    gone, and ValueError for variables that torchrun does not set.
    """
    outer = _GROUP.get()
    if outer is not None:
        yield outer
        return
    with guarded("RANK or WORLD_SIZE", "a whole number"):
        rank, size = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    check_numbers(WORLD_SIZE=(size,), RANK=(rank, 0, size - 1))
    entered = Group(rank, size)
    with ExitStack() as stack:
        if size > 1 and not dist.is_initialized():
            with entered._exchange():
                dist.init_process_group("gloo", timeout=EXCHANGE)
            stack.callback(dist.destroy_process_group)
            if not entered.writes:
                stack.enter_context(silence())
        # Not `reset`: a generator that enters this may be closed in another context.
        stack.callback(_GROUP.set, None)
        _GROUP.set(entered)
        yield entered
