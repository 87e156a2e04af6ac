"""Measuring: turns within rounds, limits of the machine, the record of a result.

A benchmark uses the fixture `bench`, a `Bench`: it checks its contenders, lets them take turns and
records the result, which pytest-benchmark writes to its JSON file for `python benchmarks`.
"""

from __future__ import annotations

import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache, partial
from importlib import metadata
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import pytest
import torch

from benchmarks import records
from dsmooth import _extension
from dsmooth.machine import cpu_name
from dsmooth.progress import LINE_SECONDS

Run = Callable[[], object]
CPU = torch.device("cpu")
# Parameters of the smallest case, for `pytest --benchmark-disable -m smoke`; of cases that --quick
# keeps; and of cases that it leaves out.
smoke = partial(pytest.param, marks=pytest.mark.smoke)
quick = partial(pytest.param, marks=pytest.mark.quick)
full = pytest.param


class Spread(NamedTuple):
    """Median and quartiles, four digits of each."""

    median: float
    q1: float
    q3: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        return cls(*(_round(v) for v in np.percentile(values, (50, 25, 75))))


@dataclass(frozen=True)
class Limit:
    """A contender whose rate is a limit of the machine: `amount` FLOP or bytes per call."""

    run: Run
    amount: float
    unit: Literal["flops", "bytes"]

    def __call__(self) -> object:
        return self.run()


def matmul(dtype: torch.dtype, size: int = 1536) -> Limit:
    """A large matrix product, whose rate is taken as the peak of `dtype`."""
    a = torch.randn(size, size).to(dtype)
    return Limit(lambda: a @ a, 2 * size**3, "flops")


def copy(n_bytes: int = 2**27) -> Limit:
    """A copy, larger than the caches by default."""
    source = torch.ones(n_bytes, dtype=torch.uint8)
    target = torch.empty_like(source)
    return Limit(lambda: target.copy_(source), 2 * n_bytes, "bytes")


@dataclass(frozen=True)
class Turns:
    """Seconds of every contender in every round."""

    seconds: dict[str, list[float]]

    def of(self, name: str) -> Spread:
        return Spread.of(self.seconds[name])

    def ratio(self, slow: str, fast: str) -> Spread:
        """Ratio of the times in each round."""
        pairs = zip(self.seconds[slow], self.seconds[fast], strict=True)
        return Spread.of([a / b for a, b in pairs])


def take_turns(
    contenders: Mapping[str, Run],
    rounds: int,
    *,
    warmup: int = 1,
    before: int = 0,
    calls: Mapping[str, int] | None = None,
    clock: Callable[[], float] = time.perf_counter,
) -> Turns:
    """Time each contender once in every round, after `warmup` untimed rounds.

    before: untimed calls right before the timed one, which fill the caches. calls: number of calls
    that do a contender's whole work, of which one is timed. clock: such as time.thread_time, CPU
    seconds of this thread.
    """
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    announced = time.monotonic()
    for i in range(rounds + warmup):
        for name, run in contenders.items():
            if time.monotonic() - announced > LINE_SECONDS:
                announced = time.monotonic()
                announce(f"round {i + 1} of {rounds + warmup}: {name}")
            for _ in range(before):
                run()
            start = clock()
            run()
            if i >= warmup:
                seconds[name].append((clock() - start) * (calls or {}).get(name, 1))
    return Turns(seconds)


def announce(text: str) -> None:
    """Print a line on the terminal at once, despite pytest's capture."""
    print(f"    {text}", file=sys.__stderr__, flush=True)


@lru_cache(maxsize=1)
def machine() -> dict[str, Any]:
    """Device, versions and commit of a measurement."""
    versions = {"python": platform.python_version()}
    for package in ("dsmooth", "torch", "triton", "numpy"):
        with suppress(metadata.PackageNotFoundError):
            versions[package] = metadata.version(package)
    described = {
        "device": cpu_name(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1,
        "versions": versions,
        "commit": _commit(),
    }
    if _extension.unavailable_reason() is None:
        described["instruction_set"] = _extension.instruction_sets()[-1]
    return described


def _commit() -> str:
    """The commit of this source tree, with a + if files differ from it."""
    describe = ["git", "describe", "--always", "--exclude=*", "--abbrev=10", "--dirty=+"]
    try:
        return subprocess.check_output(describe, cwd=Path(__file__).parent, text=True).strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


@dataclass(frozen=True)
class Work:
    """The work of one call of the contender under test."""

    images: int = 0
    flops: float = 0
    bytes: float = 0


@dataclass
class Bench:
    """One case of a benchmark, with pytest-benchmark's fixture."""

    benchmark: Any
    capsys: pytest.CaptureFixture[str]
    suite: str
    case: str

    @property
    def smoke(self) -> bool:
        """Whether the case only has to run (--benchmark-disable)."""
        return bool(self.benchmark.disabled)

    def require(self, dtype: torch.dtype, fast: Callable[[torch.device], bool]) -> None:
        """Skip a bfloat16 case on a processor where bfloat16 is not fast."""
        if dtype == torch.bfloat16 and not self.smoke and not fast(CPU):
            pytest.skip("this processor is not faster in bfloat16")

    def compare(
        self,
        contenders: Mapping[str, Run],
        ours: str,
        *,
        limits: Sequence[Literal["torch.mm", "copy"]] = (),
        shape: Sequence[int],
        dtype: torch.dtype = torch.float32,
        work: Work | None = None,
        **timing: Any,
    ) -> Turns | None:
        """Let contenders and limits take turns; record and print the result for `ours`. In a smoke
        test only run `ours`.

        timing: arguments of `take_turns`.
        """
        self.benchmark.pedantic(contenders[ours], rounds=1)
        if self.smoke:
            return None
        made = {str(name): matmul(dtype) if name == "torch.mm" else copy() for name in limits}
        turns = take_turns({**contenders, **made}, **timing)
        rates = {n: [m.unit, _round(m.amount / turns.of(n).median)] for n, m in made.items()}
        work, seconds = work or Work(), turns.of(ours).median
        result = {
            "suite": self.suite,
            "case": self.case,
            "ours": ours,
            "seconds": {name: turns.of(name) for name in turns.seconds},
            "ratios": {n: turns.ratio(n, ours) for n in contenders if n != ours},
            "rounds": len(turns.seconds[ours]),
            "img_per_s": _round(work.images / seconds),
            "flops": work.flops,
            "bytes": work.bytes,
            "limits": rates,
            "shape": list(shape),
            "dtype": str(dtype).removeprefix("torch."),
            "threads": torch.get_num_threads(),
            "load": _round(os.getloadavg()[0]),
            **machine(),
        }
        self.benchmark.extra_info.update(result)
        with self.capsys.disabled():
            print("\n  " + "  ".join(filter(None, records.cells(result))), flush=True)
        return turns


def _round(value: float) -> float:
    return float(f"{value:.4g}")
