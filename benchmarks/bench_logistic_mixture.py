"""Loss and gradient of the logistic mixture: native against eager and compiled PyTorch.

    pytest benchmarks/bench_logistic_mixture.py

One thread. The contenders take turns within a round, each warm: it runs twice before it is timed. A
ratio is the median over rounds of two neighbouring times. With --benchmark-disable the smallest
case is checked and nothing is timed.
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

from dsmooth import _extension
from dsmooth.functional import logistic_mixture_log_prob, logistic_mixture_log_prob_ref

# Without a C++ compiler there is no extension, and nothing to compare.
pytestmark = pytest.mark.skipif(
    not _extension.is_available(), reason=str(_extension.unavailable_reason())
)
SHAPES = {  # (B, C, H, W), K
    "small": ((2, 1, 8, 8), 2),
    "mnist": ((64, 1, 28, 28), 10),
    "cifar": ((16, 3, 32, 32), 10),
}
ROUNDS = 15
ALLOCATED = 31 * 2**20  # bytes; see one_thread_and_warm_memory


@pytest.fixture(autouse=True)
def one_thread_and_warm_memory() -> Iterator[None]:
    """In a young process the allocator returns each freed tensor to the system, and page faults on
    fresh memory take longer than any contender. It stops once a larger block was freed, as in
    training."""
    torch.empty(ALLOCATED, dtype=torch.uint8).fill_(1)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize("gradient", [False, True], ids=["forward", "gradient"])
@pytest.mark.parametrize("likelihood", ["continuous", "discretized"])
@pytest.mark.parametrize("shape", SHAPES)
def bench_logistic_mixture(
    benchmark: Any, capsys: pytest.CaptureFixture[str], shape: str, likelihood: Any, gradient: bool
) -> None:
    if benchmark.disabled and shape != "small":
        pytest.skip("without timing, the smallest shape shows that the benchmark runs")
    (batch, channels, height, width), n_mix = SHAPES[shape]
    generator = torch.Generator().manual_seed(0)
    levels = torch.randint(0, 256, (batch, channels, height, width), generator=generator)
    x = levels.float() / 127.5 - 1
    n_params = n_mix * (3 if channels == 1 else 10)
    params = torch.randn(batch, n_params, height, width, generator=generator)
    params.requires_grad_(gradient)

    def step(log_prob: Callable[[Tensor, Tensor], Tensor]) -> Callable[[], Tensor]:
        def run() -> Tensor:
            loss = log_prob(x, params).sum()
            return torch.autograd.grad(loss, params)[0] if gradient else loss

        return run

    def reference(x: Tensor, params: Tensor) -> Tensor:
        return logistic_mixture_log_prob_ref(x, params, likelihood)

    def native(x: Tensor, params: Tensor) -> Tensor:
        return logistic_mixture_log_prob(x, params, likelihood, impl="native")

    contenders = {"eager": step(reference), "native": step(native)}
    if not benchmark.disabled:
        torch.compiler.reset()
        contenders["compile"] = step(torch.compile(reference, fullgraph=True))
    for run in contenders.values():
        got, want = run(), contenders["eager"]()
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5 * want.abs().max().item())
    if benchmark.disabled:
        benchmark(contenders["native"])
        return

    seconds = interleave(contenders)
    benchmark.extra_info.update(
        threads=torch.get_num_threads(),
        torch=torch.__version__,
        load=os.getloadavg()[0],
        instruction_set=_extension.extension().instruction_sets()[-1],
    )
    for name in ("eager", "compile"):
        pairs = zip(seconds[name], seconds["native"], strict=True)
        benchmark.extra_info[f"{name}/native"] = statistics.median(a / b for a, b in pairs)
    benchmark.pedantic(contenders["native"], rounds=ROUNDS, warmup_rounds=2)
    with capsys.disabled():
        times = ", ".join(f"{k} {statistics.median(v) * 1e3:.2f} ms" for k, v in seconds.items())
        ratios = ", ".join(
            f"{name} / native {benchmark.extra_info[f'{name}/native']:.1f}"
            for name in ("eager", "compile")
        )
        mode = "gradient" if gradient else "forward"
        load = benchmark.extra_info["load"]
        print(f"\n{shape} {likelihood} {mode}: {times}; {ratios}; load {load:.1f}")


def interleave(contenders: dict[str, Callable[[], Tensor]]) -> dict[str, list[float]]:
    """Seconds of every contender in every round, after two rounds of warm-up."""
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for i in range(ROUNDS + 2):
        for name, run in contenders.items():
            for _ in range(2):
                run()
            start = time.perf_counter()
            run()
            if i >= 2:
                seconds[name].append(time.perf_counter() - start)
    return seconds
