"""The fixture `bench`, and what benchmarks need."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from benchmarks.measure import Bench, announce
from dsmooth import _extension
from dsmooth.machine import torch_threads


def pytest_xdist_auto_num_workers() -> int:
    """No workers: what is timed has the machine for itself."""
    return 0


@pytest.fixture
def bench(
    benchmark: Any, capsys: pytest.CaptureFixture[str], request: pytest.FixtureRequest
) -> Bench:
    """The tools that a benchmark measures with."""
    suite = request.path.stem.removeprefix("bench_")
    name = request.node.name
    case = name[name.index("[") + 1 : -1] if "[" in name else name.removeprefix("bench_")
    if not benchmark.disabled:
        announce(f"{suite} {case} ...")
    return Bench(benchmark, capsys, suite, case)


@pytest.fixture
def native() -> None:
    """Without a C++ compiler there is no extension, and nothing to compare."""
    if not _extension.is_available():
        pytest.skip(str(_extension.unavailable_reason()))


@pytest.fixture
def one_thread() -> Iterator[None]:
    """torch computes with one thread."""
    with torch_threads(1):
        yield
