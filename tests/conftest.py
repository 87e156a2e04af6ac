"""Settings that every test shares."""

from __future__ import annotations

import signal
import sys
from pathlib import Path

import pytest
import torch

# The tests' tensors are too small to share among threads; on a busy machine sharing makes them
# wait for each other. Tests about thread counts set their own.
torch.set_num_threads(1)

# A process in the background may inherit an ignored SIGINT; tests of Ctrl-C need Python's own.
signal.signal(signal.SIGINT, signal.default_int_handler)

# For the tests of benchmarks/; last, so that an installed dsmooth is found before the source tree.
sys.path.append(str(Path(__file__).resolve().parents[1]))


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Tests marked gpu run where there is a device."""
    if item.get_closest_marker("gpu") and not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
