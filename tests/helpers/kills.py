"""Processes that are killed at a change of a file."""

from __future__ import annotations

import builtins
import itertools
import os
import signal
from collections.abc import Callable
from typing import Any

# Every step of writing a file goes through one of these.
CHANGES = ((os, "open"), (os, "replace"), (os, "fsync"), (os, "unlink"), (builtins, "open"))


def kill_at(change: int) -> None:
    """This process ends just before its `change`-th change of a file."""
    changes = itertools.count(1)

    def counted(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **keywords: Any) -> Any:
            if next(changes) == change:
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*args, **keywords)

        return call

    for module, name in CHANGES:
        setattr(module, name, counted(getattr(module, name)))


def is_killed(work: Callable[[], object]) -> bool:
    """Whether a forked process that does `work` is killed; it must not fail."""
    child = os.fork()
    if not child:
        try:
            work()
        except BaseException as error:
            os.write(2, f"{type(error).__name__}: {error}\n".encode())
            os._exit(1)
        os._exit(0)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert status in (0, -signal.SIGKILL), "the work failed"
    return status != 0
