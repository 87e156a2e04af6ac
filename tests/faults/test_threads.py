"""Threads that are missing: those that the system does not give, and those of a forked process."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

FEW_THREADS, FORKS = (Path(__file__).with_name(name) for name in ("few_threads.py", "forks.py"))
STACK = 1 << 30


@pytest.mark.skipif(sys.platform != "linux", reason="reads the size of a process from /proc")
def test_the_same_images_with_the_threads_that_can_be_started() -> None:
    """A team with a lane missing waited for ever at its first barrier."""

    def limit() -> None:
        _, most = resource.getrlimit(resource.RLIMIT_STACK)
        resource.setrlimit(resource.RLIMIT_STACK, (STACK, most))

    result = subprocess.run(
        [sys.executable, FEW_THREADS],
        capture_output=True,
        text=True,
        timeout=120,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        preexec_fn=limit,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout == "the same images\n"


def test_a_forked_process_computes_what_its_parent_does() -> None:
    """OpenMP's threads were not there, and the child waited for them for ever."""
    result = subprocess.run(
        [sys.executable, FORKS], capture_output=True, text=True, timeout=200, check=False
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout == "os.fork 0\nbeside a sampler 0\nDataLoader 0\n"
