"""Training runs as child processes side by side, watched through their logs.

Two processes with one thread each get more out of two cores than one process with two threads: the
layers of a small model are too short to share.
"""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..config import Role
from ..progress import LINE_SECONDS, clock
from ..runs import RunFolder, read_entry

POLL_SECONDS = 0.2


def command_of(role: str, run: RunFolder, threads: int) -> list[str]:
    """The child's command line: `dsmooth train`, with --resume if there is a checkpoint."""
    # The parent's sys.path makes the child import the same package, whatever the current folder
    # holds: a clone of the sources would otherwise win over the installed package.
    start = f"import sys; sys.path[:] = {sys.path!r}; from dsmooth.cli import main; main()"
    resume = run.can_resume()
    settings = run.config if resume else run.settings
    arguments = ["--config", settings, "--out", run.path, "--threads", threads]
    return [
        *(sys.executable, "-c", start, "train", role),
        *(str(argument) for argument in arguments),
        *(["--resume"] if resume else []),
    ]


def train_side_by_side(
    runs: Mapping[Role, RunFolder],
    threads: int,
    stop: Callable[[], int | None],
    keep_open: Sequence[int] = (),
) -> int | None:
    """Train the runs of some roles at the same time, `threads` CPU threads each, and show it all.

    stop: returns the number of a signal that asks to end early, or None; the children then save
    and leave. keep_open: file descriptors that the children inherit. Returns the signal's number,
    or None if every run finished. Raises ChildProcessError with a child's own message if one
    fails, after the others have saved and left.
    """
    children: list[subprocess.Popen[bytes]] = []
    asked = False
    try:
        for role, run in runs.items():
            with open(run.output, "wb") as output:
                children.append(
                    subprocess.Popen(
                        command_of(role, run, threads),
                        stdin=subprocess.DEVNULL,
                        stdout=output,
                        stderr=subprocess.STDOUT,
                        pass_fds=keep_open,
                    )
                )
        with Screen(runs) as screen:
            while any(child.poll() is None for child in children):
                time.sleep(POLL_SECONDS)
                screen.update()
                if not asked and (stop() or any(child.poll() for child in children)):
                    asked = True
                    screen.say("stopping: the runs save their state")
                    terminate(runs.values(), children)
            screen.update(last=True)
    finally:
        terminate(runs.values(), children)
        for child in children:
            child.wait()
    if stop():
        return stop()
    failures = [
        f"the {role} run failed (exit status {child.returncode}):\n{last_words(run.output)}"
        for (role, run), child in zip(runs.items(), children, strict=True)
        # A run that had to stop because another failed is not at fault.
        if child.returncode not in (0, 128 + signal.SIGTERM, -signal.SIGTERM, -signal.SIGKILL)
    ]
    if failures:
        raise ChildProcessError("\n".join(failures))
    if any(child.returncode for child in children):
        raise ChildProcessError("a training run was stopped from outside; repeat the command")
    return None


def terminate(runs: Iterable[RunFolder], children: Sequence[subprocess.Popen[bytes]]) -> None:
    """Ask every child that still runs to save and leave; end one that has nothing to save yet."""
    for run, child in zip(runs, children, strict=False):
        if child.poll() is None:
            child.send_signal(signal.SIGTERM)
            if not run.config.exists():  # it still measures the rate
                child.kill()


def last_words(path: Path, lines: int = 12) -> str:
    """The error message at the end of a child's output, else its last lines."""
    text = path.read_text(errors="replace").rstrip()
    _, mark, message = text.rpartition("dsmooth: error: ")
    return message if mark else "\n".join(text.splitlines()[-lines:])


@dataclass
class Watched:
    """The state of a run, from its log so far."""

    role: str
    run: RunFolder
    offset: int = 0
    total: int = 0
    images: int = 0
    loss_name: str = ""
    loss: float | None = None
    speed: float = 0.0
    news: list[str] = field(default_factory=list)

    def read(self) -> None:
        """Take in the lines that were added since the last call."""
        path = self.run.log
        if not path.exists():
            return
        with open(path, "rb") as file:
            file.seek(self.offset)
            new = file.read()
        complete = new[: new.rfind(b"\n") + 1]
        self.offset += len(complete)
        for line in complete.splitlines():
            entry = read_entry(line)
            if entry is not None:
                self._note(entry)

    def _note(self, entry: dict[str, Any]) -> None:
        self.images = entry["images"]
        event = entry["event"]
        if event == "start":
            self.total, self.loss_name = entry["total"], entry["loss"]
            self.loss, self.news = None, [f"{self.total:,} images; loss in {self.loss_name}"]
        elif event == "step":
            self.loss, self.speed = entry["bits_per_dim"], entry["images_per_second"]
        elif event == "evaluation":
            self.news.append(f"{self.images:,} images · held out: {entry['bits_per_dim']:.3f}")

    def text(self) -> str:
        """Loss, rate and time left in a few words."""
        if self.loss is None:
            return "starting"
        left = (self.total - self.images) / self.speed if self.speed else 0.0
        return f"{self.loss:.3f} bits/dim · {self.speed:.0f} img/s · {clock(left)} left"


class Screen:
    """Progress of several runs: bars on a terminal, else a line per run every ten seconds."""

    def __init__(self, runs: Mapping[Role, RunFolder]) -> None:
        self.watched = [Watched(role, run) for role, run in runs.items()]
        for one in self.watched:  # what earlier calls said is not news
            one.read()
            one.news.clear()
            one.total = 0
        self.printed = time.monotonic()
        self.bars: Any = None
        if sys.stdout.isatty():
            from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
            from rich.table import Column

            self.bars = Progress(
                TextColumn("{task.description}"),
                BarColumn(bar_width=16),
                MofNCompleteColumn(),
                TextColumn(
                    "{task.fields[text]}", table_column=Column(no_wrap=True, overflow="ellipsis")
                ),
            )
            for role in runs:
                self.bars.add_task(role, total=None, text="starting")

    def __enter__(self) -> Screen:
        if self.bars is not None:
            self.bars.start()
        return self

    def __exit__(self, *exception: object) -> None:
        if self.bars is not None:
            self.bars.stop()

    def update(self, *, last: bool = False) -> None:
        """Read the logs and show what is new."""
        due = last or time.monotonic() - self.printed >= LINE_SECONDS
        if due:
            self.printed = time.monotonic()
        for number, one in enumerate(self.watched):
            one.read()
            for news in one.news:
                self.say(f"{one.role}: {news}")
            one.news.clear()
            if self.bars is not None:
                task = self.bars.task_ids[number]
                total = one.total or None
                self.bars.update(task, total=total, completed=one.images, text=one.text())
            elif due and one.total and not (one.images >= one.total and not last):
                self.say(f"{one.role}: {one.images:,}/{one.total:,} images · {one.text()}")

    def say(self, text: str) -> None:
        """Print one line, above the bars if there are any."""
        if self.bars is not None:
            self.bars.console.print(text, highlight=False)
        else:
            print(text, flush=True)
