"""Which cases run, and the fixture `bench`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from benchmarks.measure import Bench, announce, torch_threads
from dsmooth import _extension


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--quick", action="store_true", help="only the cases that take seconds")


def pytest_xdist_auto_num_workers() -> int:
    """No workers: what is timed has the machine for itself."""
    return 0


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "smoke: the smallest case, which --benchmark-disable runs")
    config.addinivalue_line("markers", "quick: a case that --quick keeps")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Without timing the smallest cases run; with it, all but these, or those of --quick."""

    def wanted(item: pytest.Item) -> bool:
        if not item.path.name.startswith("bench_"):
            return True
        if config.getoption("benchmark_disable"):
            return item.get_closest_marker("smoke") is not None
        if config.getoption("--quick"):
            return item.get_closest_marker("quick") is not None
        return item.get_closest_marker("smoke") is None

    config.hook.pytest_deselected(items=[item for item in items if not wanted(item)])
    items[:] = [item for item in items if wanted(item)]


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
