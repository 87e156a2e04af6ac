"""Output of the logger `dsmooth`, and progress: bars in a terminal or notebook, else lines.

Progress is a context. What calls opens one, `with progress("drawing", 64):`, and what works says
how far it is, `advance_to(0.5)`; without an open one that does nothing. A part of the work, with
`portion`, is again a whole to what it calls.
"""

from __future__ import annotations

import logging
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from contextvars import ContextVar
from datetime import timedelta
from importlib.util import find_spec

from .text import escape_control

# Shows how much is done, and a text.
Bar = Callable[[float, str], None]
LINE_SECONDS = 10.0
# INFO is for lines that a command prints, WARNING for lines that every user should see.
LOG = logging.getLogger("dsmooth")


def shows_bars() -> bool:
    """Whether the output is a terminal, or a notebook with the widgets that rich needs for bars."""
    if type(sys.stdout).__module__ == "ipykernel.iostream":
        return find_spec("ipywidgets") is not None
    return sys.stdout.isatty()


class _Lines(logging.Handler):
    """Prints information to stdout, and warnings to stderr, prefixed by the program's name."""

    def emit(self, record: logging.LogRecord) -> None:
        line = escape_control(record.getMessage())
        if record.levelno < logging.WARNING:
            print(line, flush=True)
        else:
            print(f"dsmooth: {line}", file=sys.stderr)


def are_lines_shown() -> bool:
    """Whether this is inside `lines_shown`, as in a command."""
    return any(isinstance(handler, _Lines) for handler in LOG.handlers)


@contextmanager
def lines_shown() -> Iterator[None]:
    """Print the messages of `LOG`, inside the outermost such block."""
    if are_lines_shown():
        yield
        return
    handler, before = _Lines(), LOG.level
    LOG.addHandler(handler)
    LOG.setLevel(logging.INFO)
    try:
        yield
    finally:
        LOG.removeHandler(handler)
        LOG.setLevel(before)


@contextmanager
def silence() -> Iterator[None]:
    """Silence stdout inside the block."""
    with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere):
        yield


class _Portion:
    """A part of some work; `tell` gets each amount of it that is done, and their sum."""

    def __init__(self, tell: Callable[[float, float], object]) -> None:
        self.done, self._tell = 0.0, tell
        self._lock = threading.Lock()  # parts run in threads

    def add(self, amount: float) -> None:
        with self._lock:
            self.done += amount
            self._tell(amount, self.done)


_CURRENT: ContextVar[_Portion | None] = ContextVar("progress", default=None)


def advance_to(fraction: float) -> None:
    """Say how much of the current work is done, from 0 to 1; it never goes back."""
    current = _CURRENT.get()
    if current is not None and fraction > current.done:
        current.add(min(fraction, 1.0) - current.done)


@contextmanager
def _entered(tell: Callable[[float, float], object]) -> Iterator[None]:
    token = _CURRENT.set(_Portion(tell))
    try:
        yield
    finally:
        _CURRENT.reset(token)


@contextmanager
def portion(share: float) -> Iterator[None]:
    """Inside the block, work that is `share` of the current one; afterwards it is done."""
    current = _CURRENT.get()
    if current is None:
        yield
        return
    add = current.add
    with _entered(lambda amount, _: add(amount * share)):
        yield
        advance_to(1.0)


@contextmanager
def progress(title: str, total: int, unit: str = "images") -> Iterator[None]:
    """Show how much of the work inside the block is done: a bar, or lines with seconds.

    total: the work in `unit`. Inside another such block it shows nothing of its own.
    """
    if _CURRENT.get() is not None:
        with portion(1.0):
            yield
        return
    # Rounded, sums of portions are round numbers again.
    with _shown(title, total, unit) as show, _entered(lambda _, sum: show(round(sum * total, 3))):
        yield


@contextmanager
def _shown(title: str, total: int, unit: str) -> Iterator[Callable[[float], object]]:
    """Gives a function that shows how many of `total` units are done."""
    started = printed = time.monotonic()

    def left(done: float) -> str:
        """The estimated remaining time; "" before anything is done."""
        seconds = (time.monotonic() - started) * (total / (done or 1) - 1)
        return f", {timedelta(seconds=round(seconds))} left" * bool(done)

    with progress_bar(title, total, text=unit) as bar:
        if bar is not None:
            yield lambda done: bar(done, unit + left(done))
            return
    print(f"{title}: {total:,} {unit.removesuffix('s') if total == 1 else unit}", flush=True)

    def show(done: float) -> None:
        nonlocal printed
        if time.monotonic() - printed >= LINE_SECONDS and done < total:
            printed = time.monotonic()
            part = f" ({100 * done / total:.0f} %)" * (done != int(done))
            print(f"{title}: {int(done):,}/{total:,}{part}{left(done)}", flush=True)

    yield show
    print(f"{title}: done in {time.monotonic() - started:.1f} s", flush=True)


@contextmanager
def progress_bar(
    name: str, total: int, completed: int = 0, text: str = "starting"
) -> Iterator[Bar | None]:
    """Show a bar with a text inside the block; None where the output shows no bars."""
    if not shows_bars():
        yield None
        return
    from rich import progress as rich

    columns = rich.BarColumn(bar_width=24), rich.MofNCompleteColumn(), rich.TimeElapsedColumn()
    with rich.Progress("{task.description}", *columns, "{task.fields[text]}") as bar:
        task = bar.add_task(name, total=total, completed=completed, text=text)
        yield lambda done, text: bar.update(task, completed=done, text=text)
