"""Collectives of the processes that torchrun started, over gloo on the CPU.

When a process ends, its connections close, and the others notice at their next exchange.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from contextvars import copy_context
from datetime import timedelta
from typing import Any, TypeVar

from .progress import Progress, silence

# How long a process waits for the others, at the start and at an exchange, which some processes
# reach later. At an exchange it does not wait for a process that has ended.
EXCHANGE = timedelta(minutes=30)


T = TypeVar("T")
Item = TypeVar("Item")
Result = TypeVar("Result")


class ProcessLost(ConnectionError):
    """Another process of this call has ended or does not respond."""


def rank_and_size() -> tuple[int, int]:
    """This process among those that torchrun started: (RANK, WORLD_SIZE), (0, 1) without it.

    Raises ValueError for values that torchrun does not set.
    """
    rank, size = from_torchrun("RANK", 0), from_torchrun("WORLD_SIZE", 1)
    if rank >= size:
        raise ValueError(f"RANK must be less than WORLD_SIZE = {size}, got {rank}")
    return rank, size


def from_torchrun(name: str, default: int | None = None) -> int:
    """An integer environment variable of torchrun. Raises ValueError for other values."""
    text = os.environ.get(name, str(default))
    if not text.isdecimal():
        raise ValueError(f"{name}, which torchrun sets, must be a number, got {text!r}")
    return int(text)


@contextmanager
def process_group() -> Iterator[None]:
    """Connect the processes that torchrun started, until the outermost such block ends.

    Enter it before code that may fail in a single process. The first process writes files and
    prints, the others do neither.
    """
    import torch.distributed as dist

    from .files import writing_nothing  # it imports torch

    rank, size = rank_and_size()
    if size == 1 or dist.is_initialized():
        yield
        return
    try:
        dist.init_process_group("gloo", timeout=EXCHANGE)
    except RuntimeError as error:
        raise ProcessLost(
            f"rank {rank}: the {size} processes did not all start; the failed process reports the "
            f"reason ({str(error).partition(chr(10))[0]})"
        ) from error
    try:
        with writing_nothing() if rank else nullcontext(), silence() if rank else nullcontext():
            yield
    finally:
        dist.destroy_process_group()


@contextmanager
def exchange() -> Iterator[None]:
    """Raise ProcessLost if another process is gone during the collectives inside the block."""
    try:
        yield
    except RuntimeError as error:
        # gloo's RuntimeError mentions a source file. NCCL raises its own exception class.
        if type(error).__name__.startswith("Dist") or "/gloo/" in str(error):
            raise ProcessLost(
                f"rank {rank_and_size()[0]}: another process ended or did not respond; the failed "
                "process reports the reason. Repeat the command to resume"
            ) from error
        raise


def all_reduce_max(*numbers: int) -> list[int]:
    """The maximum of each number over all processes. All processes call this."""
    if rank_and_size()[1] == 1:
        return list(numbers)
    import torch
    import torch.distributed as dist

    largest = torch.tensor(numbers, dtype=torch.int64)
    with exchange():
        dist.all_reduce(largest, dist.ReduceOp.MAX)
    return largest.tolist()


def all_same(number: int) -> bool:
    """Whether all processes have the same number. All processes call this."""
    most, least = all_reduce_max(number, -number)
    return most == -least


def barrier() -> None:
    """Wait for all processes. Afterwards all see the files that rank 0 wrote before."""
    all_reduce_max(0)


def broadcast_int(number: int) -> int:
    """The number of rank 0, at least 0, on all processes. All processes call this."""
    return all_reduce_max(number if rank_and_size()[0] == 0 else 0)[0]


def side_by_side(work: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
    """Yield work(item) in order; as many items run at once as torch has threads, on one thread
    each.

    So results do not depend on the number of threads, and threads do not wait for each other within
    an operation. Gradient mode, autocast and context variables are those of the caller.
    """
    import torch

    count, gradients = torch.get_num_threads(), torch.is_grad_enabled()
    half, dtype = torch.is_autocast_enabled("cpu"), torch.get_autocast_dtype("cpu")

    def in_context(item: Item) -> Result:
        with torch.set_grad_enabled(gradients), torch.autocast("cpu", dtype, enabled=half):
            return work(item)

    waiting: deque[Future[Result]] = deque()
    pool = ThreadPoolExecutor(count, initializer=torch.set_num_threads, initargs=(1,))
    stopped = False
    try:
        for item in items:
            waiting.append(pool.submit(copy_context().run, in_context, item))
            if len(waiting) > count:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    except (KeyboardInterrupt, GeneratorExit):
        stopped = True  # does not wait for running items, which may take a minute
        raise
    finally:
        pool.shutdown(wait=not stopped, cancel_futures=True)
        torch.set_num_threads(count)


def gather(value: T) -> list[T]:
    """The values of all processes, by rank. They are pickled. All processes call this."""
    return gather_results(value, to_all=True)


def from_first(compute: Callable[[], T]) -> T:
    """What `compute` returns, or raises, in the first process. All processes call this."""
    rank, size = rank_and_size()
    if size == 1:
        return compute()
    answer: tuple[T | None, Exception | None] = None, None
    if rank == 0:
        try:
            answer = compute(), None
        except (OSError, ValueError) as error:
            answer = None, error
    value, raised = gather(answer)[0]
    if raised is not None:
        raise raised
    return value  # type: ignore[return-value] # it is what `compute` returned


def machine_by_machine(compute: Callable[[], T]) -> T:
    """What `compute` returns in each process: the first computes alone, then the first of each
    other machine, then the rest. All processes call this."""
    turn = (rank_and_size()[0] > 0) + (from_torchrun("LOCAL_RANK", 0) > 0)
    for now in range(3):
        if now == turn:
            value = compute()
        gather(None)
    return value


def gather_results(result: object, *, to_all: bool) -> list[Any]:
    """The results of all processes, by rank; on other ranks than 0 only with `to_all`, else none.

    They are pickled, with tensors on the CPU. All processes call this.
    """
    rank, size = rank_and_size()
    if size == 1:
        return [result]
    import torch.distributed as dist

    results: list[Any] = [None] * size
    with exchange():
        if to_all:
            dist.all_gather_object(results, result)
        else:
            dist.gather_object(result, results if rank == 0 else None)
    return results if to_all or rank == 0 else []


def distributed_map(
    items: Sequence[Item], work: Callable[[Item], Result], *, to_all: bool = True
) -> Iterator[Result]:
    """work(item) of all items, in order, as from a single process.

    Each process computes every size-th item. to_all: see `gather_results`.
    """
    rank, size = rank_and_size()
    for first in range(0, len(items), size):
        result = work(items[first + rank]) if first + rank < len(items) else None
        yield from gather_results(result, to_all=to_all)[: len(items) - first]


def in_batches(
    n: int,
    size: int,
    work: Callable[[int], Result],
    *,
    on_cpu: bool,
    progress: Progress | None = None,
    to_all: bool = True,
) -> Iterator[Result]:
    """work(first) of the batches of n images, in order, by `distributed_map`.

    A single process on a CPU computes them `side_by_side`. progress: called with the number of
    images done.
    """
    firsts = range(0, n, size)
    in_threads = on_cpu and rank_and_size()[1] == 1
    results = (
        side_by_side(work, firsts) if in_threads else distributed_map(firsts, work, to_all=to_all)
    )
    for result, first in zip(results, firsts, strict=False):
        yield result
        if progress:
            progress(min(first + size, n))
