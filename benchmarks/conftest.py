"""The fixtures of the benchmarks."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.measure import Bench, announce
from dsmooth import _extension
from dsmooth.machine import torch_threads


def pytest_xdist_auto_num_workers() -> int:
    """Run without workers, so that nothing else runs during a measurement."""
    return 0


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--results", type=Path, help="file to which each case adds its result")


@pytest.fixture
def bench(capsys: pytest.CaptureFixture[str], request: pytest.FixtureRequest) -> Bench:
    """The measuring tools of one case."""
    suite, case = request.path.stem.removeprefix("bench_"), request.node.callspec.id
    smoke = request.node.get_closest_marker("smoke") is not None
    if not smoke:
        announce(f"{suite} {case} ...")
    return Bench(capsys, suite, case, smoke, request.config.getoption("--results"))


@pytest.fixture
def native() -> None:
    """Skip a benchmark of the extension if it is not built."""
    if not _extension.is_available():
        pytest.skip(str(_extension.unavailable_reason()))


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Compute with one thread of torch."""
    with torch_threads(1):
        yield
