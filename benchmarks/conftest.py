"""The fixtures of the benchmarks."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from benchmarks.measure import Bench, announce
from dsmooth import _extension
from dsmooth.machine import torch_threads


def pytest_xdist_auto_num_workers() -> int:
    """Run without workers, so that nothing else runs during a measurement."""
    return 0


@pytest.fixture
def bench(
    benchmark: Any, capsys: pytest.CaptureFixture[str], request: pytest.FixtureRequest
) -> Bench:
    """The measuring tools of one case."""
    suite = request.path.stem.removeprefix("bench_")
    name = request.node.name
    case = name[name.index("[") + 1 : -1] if "[" in name else name.removeprefix("bench_")
    if not benchmark.disabled:
        announce(f"{suite} {case} ...")
    return Bench(benchmark, capsys, suite, case)


@pytest.fixture
def native() -> None:
    """Skip a benchmark of the extension if it is not built."""
    if _extension.unavailable_reason() is not None:
        pytest.skip(str(_extension.unavailable_reason()))


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Compute with one thread of torch."""
    with torch_threads(1):
        yield
