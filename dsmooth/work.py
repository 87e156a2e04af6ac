"""Work in parts: who computes them, and what is kept.

A verb, a measure or a sampler is a function from a part to a value; `map_parts` returns the values
of all parts, in order. Parts run side by side: on the threads of a CPU, each on one thread, or on
the processes that torchrun started, each part on one process. A value depends on its part only, so
the values are the same for any number of threads and processes.

A `Record` keeps what is done: a JSON file with a request and its result. Its form, in the keys
`version`, `dsmooth`, `request` and `result`, is that of every result of `evaluate`, `probe` and
`reproduce`, of folders of drawn images, and of the packaged cards.
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from contextvars import copy_context
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, Literal, TypeVar

import msgspec
import torch

from ._extension import __version__
from .distributed import Group, group, process_group
from .fields import difference
from .files import (
    Json,
    lock_folder,
    printable,
    read_json,
    remove_half_written,
    structured,
    write_json,
)
from .machine import keep_freed_memory, torch_threads
from .progress import portion

P = TypeVar("P")
T = TypeVar("T")
R = TypeVar("R")


@contextmanager
def workers(threads: int | None = None) -> Iterator[Group]:
    """Work inside with all processes that torchrun started, on `threads` threads each; None keeps
    torch's number."""
    keep_freed_memory()
    with process_group() as processes, torch_threads(threads):
        yield processes


def once(compute: Callable[..., T], *arguments: Any) -> T:
    """What `compute` returns, or raises, in one process of a group. All processes call this."""
    return group().first(lambda: compute(*arguments))


def is_common(value: object) -> bool:
    """Whether a value is the same in all processes of a group. All processes call this."""
    return len({*group().gather(value)}) == 1


@contextmanager
def own_folder(folder: Path, holder: str) -> Iterator[None]:
    """Keep other calls out of a folder, without what their kills left half written."""
    with ExitStack() as stack:
        once(stack.enter_context, lock_folder(folder, holder))
        once(remove_half_written, folder)
        yield


def map_parts(
    compute: Callable[[P], T], parts: Sequence[P], *, in_threads: bool = True
) -> Iterator[T]:
    """Yield compute(part) of all parts, in order. All processes of a group call this.

    in_threads: whether parts may run on threads, which a GPU and the native sampler do not need.
    """
    with process_group() as processes:
        if in_threads and processes.size == 1:
            yield from _in_threads(compute, parts)
        else:
            yield from _in_processes(processes, compute, parts)


def batches(n: int, size: int) -> list[range]:
    """The numbers of n images in parts of at most `size`."""
    return [range(first, min(first + size, n)) for first in range(0, n, size)]


def runs(numbers: Sequence[int], size: int) -> list[range]:
    """Increasing numbers as ranges of at most `size`."""
    grouped: list[list[int]] = []
    for number in numbers:
        if not grouped or number != grouped[-1][-1] + 1 or len(grouped[-1]) == size:
            grouped.append([])
        grouped[-1].append(number)
    return [range(group[0], group[-1] + 1) for group in grouped]


def fair_size(n: int, most: int) -> int:
    """The size of parts of n images: `most`, or less so that no process is without a part.

    For values that do not depend on the size of parts.
    """
    return max(1, min(most, -(-n // group().size)))


def _in_processes(processes: Group, compute: Callable[[P], T], parts: Sequence[P]) -> Iterator[T]:
    """Each process computes every size-th part, one by one, and all have all values."""
    rank, size = processes.rank, processes.size
    for first in range(0, len(parts), size):
        turn, value = parts[first : first + size], None
        with portion(len(turn) / len(parts)):
            if rank < len(turn):
                value = compute(turn[rank])
        yield from processes.gather(value)[: len(turn)]  # type: ignore[misc] # None is cut off


def _in_threads(compute: Callable[[P], T], parts: Sequence[P]) -> Iterator[T]:
    """As many parts run at once as torch has threads, on one thread each.

    So threads do not wait for each other within an operation. Gradient mode, autocast and context
    variables are those of the caller.
    """
    count, gradients = torch.get_num_threads(), torch.is_grad_enabled()
    half, dtype = torch.is_autocast_enabled("cpu"), torch.get_autocast_dtype("cpu")

    def in_context(part: P) -> T:
        cast = torch.autocast("cpu", dtype, enabled=half)
        with torch.set_grad_enabled(gradients), cast, portion(1 / len(parts)):
            return compute(part)

    waiting: deque[Future[T]] = deque()
    pool = ThreadPoolExecutor(count, initializer=torch.set_num_threads, initargs=(1,))
    stopped = False
    try:
        for part in parts:
            waiting.append(pool.submit(copy_context().run, in_context, part))
            if len(waiting) > count:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    except (KeyboardInterrupt, GeneratorExit):
        stopped = True  # does not wait for running parts, which may take a minute
        raise
    finally:
        pool.shutdown(wait=not stopped, cancel_futures=True)
        torch.set_num_threads(count)


class Record(Generic[R]):
    """The record in `path` of a request and its result, which is of type `kind`.

    request: all that decides the result, as JSON. `result` is None until it is known. All processes
    of a group make the same record and call its methods together. Raises ValueError for a record of
    another request, naming the first field that differs, and for a file of another form.
    """

    def __init__(self, path: Path, request: Mapping[str, object], kind: type[R]) -> None:
        self.path = path
        self.request: Mapping[str, object] = json.loads(json.dumps(request))
        self.result: R | None = None
        # As the first process sees it: the others may come after its first write.
        stored = once(lambda: read_record(path) if path.exists() else None)
        if stored is None:
            return
        if other := difference(stored["request"], self.request):
            words = "is of another request"
            raise ValueError(f"{printable(path)} {words}: {other}; choose another folder")
        if stored["result"] is not None:
            self.result = structured(stored["result"], kind, path)

    def obtain(self, compute: Callable[[], R]) -> R:
        """The result, which is computed and kept unless it is known."""
        return self.keep(compute()) if self.result is None else self.result

    def keep(self, result: R) -> R:
        """Write the record with a result, and return it."""
        self.result = result
        once(write_json, self.path, record_of(self.request, result))
        return result

    def begin(self, folder: Path) -> None:
        """Write the record, if there is none. Raises ValueError if `folder` has files by then."""
        once(self._begin, folder)

    def _begin(self, folder: Path) -> None:
        if self.path.exists():
            return
        if any(folder.glob("[!.]*")):  # a kill may have left half of a file
            words = f"has files, and no {self.path.name} says what they are of"
            raise ValueError(f"{printable(folder)} {words}: choose a new folder")
        write_json(self.path, record_of(self.request, None))


def record_of(request: Mapping[str, object], result: object) -> Mapping[str, object]:
    """The content of a record."""
    content = {"request": request, "result": result}
    return msgspec.to_builtins({"version": 2, "dsmooth": __version__, **content})


@dataclass(frozen=True)
class _Content:
    version: Literal[1, 2]  # the first had other results of bits/dim
    dsmooth: str
    request: Json
    result: Any = None


def read_record(path: Path) -> Json:
    """The content of a record. Raises FileNotFoundError or ValueError, naming the file."""
    return vars(structured(read_json(path), _Content, path))


def read_result(path: Path, kind: type[R]) -> R | None:
    """The result in a record; None for one without. Raises as `read_record` does."""
    result = read_record(path)["result"]
    return None if result is None else structured(result, kind, path)
