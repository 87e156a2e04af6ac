"""A training step of the whole network: native against eager PyTorch, in float32 and bfloat16.

    pytest benchmarks/bench_training_step.py
    DSMOOTH_BENCH_COMPILE=1 pytest benchmarks/bench_training_step.py   # and torch.compile: minutes

Batch 32 of 28x28 grey images: forward, backward, clipping, Adam. The contenders take turns within a
round. "one thread" counts the thread's CPU seconds; "two threads" wall-clock seconds, true only on
an idle machine. With --benchmark-disable the smallest case is checked, nothing timed.
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from dsmooth import ModelConfig, PixelCNNpp, _extension
from dsmooth.functional import use_impl

# Without a C++ compiler there is no extension, and nothing to compare.
pytestmark = pytest.mark.skipif(
    not _extension.is_available(), reason=str(_extension.unavailable_reason())
)
NETWORKS = {  # F, R
    "small": (4, 1),
    "F16 R1": (16, 1),
    "F24 R2": (24, 2),
    "F32 R2": (32, 2),
    "F40 R5": (40, 5),
}
ROUNDS = 3


@pytest.fixture(params=[1, 2], ids=["one thread", "two threads"])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


@pytest.mark.parametrize("network", NETWORKS)
def bench_training_step(
    benchmark: Any, capsys: pytest.CaptureFixture[str], network: str, threads: int
) -> None:
    if benchmark.disabled and (network != "small" or threads > 1):
        pytest.skip("without timing, the smallest network shows that the benchmark runs")
    size = 8 if network == "small" else 28
    x = torch.rand(32, 1, size, size, generator=torch.Generator().manual_seed(0)) * 2 - 1
    contenders = {
        f"{impl} {str(dtype)[6:]}": make_step(NETWORKS[network], x, impl, dtype)
        for impl in ("reference", "native")
        for dtype in (torch.float32, torch.bfloat16)
    }
    if not benchmark.disabled and os.environ.get("DSMOOTH_BENCH_COMPILE"):
        contenders["compile bfloat16"] = make_step(
            NETWORKS[network], x, "reference", torch.bfloat16, compiled=True
        )
    first = {name: step() for name, step in contenders.items()}
    for name, loss in first.items():
        assert abs(loss / first["reference float32"] - 1) < 5e-3, name
    if benchmark.disabled:
        benchmark.pedantic(contenders["native bfloat16"])
        return

    clock = time.thread_time if threads == 1 else time.perf_counter
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for i in range(ROUNDS + 1):
        for name, step in contenders.items():
            start = clock()
            step()
            if i >= 1:
                seconds[name].append(clock() - start)
    rates = {name: len(x) / statistics.median(s) for name, s in seconds.items()}
    benchmark.extra_info.update(
        rates, threads=threads, torch=torch.__version__, load=os.getloadavg()[0]
    )
    benchmark.pedantic(contenders["native bfloat16"], rounds=1)
    with capsys.disabled():
        text = ", ".join(f"{name} {rate:.1f}" for name, rate in rates.items())
        print(f"\n{network}, {threads} thread(s): {text} images/s; load {os.getloadavg()[0]:.1f}")


def make_step(
    network: tuple[int, int], x: Tensor, impl: Any, dtype: torch.dtype, compiled: bool = False
) -> Callable[[], float]:
    """A function that makes one update and returns its loss."""
    torch.manual_seed(0)
    config = ModelConfig(n_filters=network[0], n_resnet=network[1], dropout=0.0)
    model = PixelCNNpp(config).to(memory_format=torch.channels_last)
    optimizer = torch.optim.Adam(model.parameters(), 1e-3, fused=True)
    log_prob = torch.compile(model.log_prob) if compiled else model.log_prob

    def step() -> float:
        with use_impl(impl):
            with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
                loss = -log_prob(x).sum() / x.numel()
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            return float(loss.detach())

    return step
