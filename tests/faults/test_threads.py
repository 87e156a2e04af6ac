"""Fewer threads than asked for: the sampler uses those there are."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("few_threads.py")
STACK = 1 << 30


@pytest.mark.skipif(sys.platform != "linux", reason="reads the size of a process from /proc")
def test_the_same_images_with_the_threads_that_can_be_started() -> None:
    """A team with a lane missing waited for ever at its first barrier."""

    def limit() -> None:
        _, most = resource.getrlimit(resource.RLIMIT_STACK)
        resource.setrlimit(resource.RLIMIT_STACK, (STACK, most))

    result = subprocess.run(
        [sys.executable, SCRIPT],
        capture_output=True,
        text=True,
        timeout=120,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        preexec_fn=limit,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout == "the same images\n"
