"""kill_training.py FOLDER REFERENCE EVERY: kill copies of the run in REFERENCE, resume, compare.

A copy is trained by a forked process that is killed at the n-th change of a file, n = 1, 1 + EVERY,
... The next process resumes it, or starts it again where the folder says that nothing had begun. In
the end its weights are those of REFERENCE, bit for bit.

Prints the number of kills.
"""

from __future__ import annotations

import builtins
import os
import runpy
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch._dynamo  # torch imports it with the first optimizer: here, not in every child

from dsmooth.runs import RunFolder
from dsmooth.training import train

TINY_RUNS = runpy.run_path(str(Path(__file__).parents[1] / "helpers" / "tiny_runs.py"))
# Every step of writing a file goes through one of these.
CHANGES = ((os, "replace"), (os, "fsync"), (os, "unlink"), (builtins, "open"))


def train_on(run: RunFolder, reference: RunFolder) -> None:
    config, _ = reference.read_config()
    TINY_RUNS["use_small_runs"](pytest.MonkeyPatch())
    train(config, run.path, resume=run.can_resume(), threads=1)


def kill_at(change: int) -> None:
    """This process ends just before its `change`-th change of a file."""
    count = 0

    def counted(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **keywords: Any) -> Any:
            nonlocal count
            count += 1
            if count == change:
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*args, **keywords)

        return call

    for module, name in CHANGES:
        setattr(module, name, counted(getattr(module, name)))


def in_child(work: Callable[[], None]) -> bool:
    """Do `work` in a forked process. Returns whether it was killed."""
    child = os.fork()
    if not child:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        try:
            work()
        except BaseException as error:
            os.write(2, f"{type(error).__name__}: {error}\n".encode())
            os._exit(1)
        os._exit(0)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert status in (0, -signal.SIGKILL), "the run failed"
    return status != 0


def assert_same(run: RunFolder, reference: RunFolder) -> None:
    TINY_RUNS["assert_same_end"](run.path, reference.path)
    assert run.is_finished()
    known = {file.name for file in reference.path.iterdir()}
    assert {file.name for file in run.path.iterdir()} <= known, "something was left over"


def main(folder: Path, reference: RunFolder, every: int) -> int:
    kills = 0
    killed, change = True, 1 - every
    while killed:  # until the run ends before its next change
        change += every
        run = RunFolder(folder / f"change-{change}")

        def work(run: RunFolder = run, change: int = change) -> None:
            kill_at(change)
            train_on(run, reference)

        killed = in_child(work)
        kills += killed
        in_child(lambda run=run: train_on(run, reference))
        assert_same(run, reference)
    return kills


if __name__ == "__main__":
    torch.set_num_threads(1)
    print(main(Path(sys.argv[1]), RunFolder(Path(sys.argv[2])), int(sys.argv[3])), "kills")
