"""One gated block with a skip, forward and backward: native against eager and compiled PyTorch.

    pytest benchmarks/bench_gated_block.py

One thread, channels_last, batch 32. The contenders take turns within a round; a ratio is the median
over rounds of two neighbouring times. Seconds are of the thread's CPU, so that another process
costs caches but not turns. With --benchmark-disable the smallest case is checked, nothing timed.
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
from dsmooth.functional import gated_resnet

# Without a C++ compiler there is no extension, and nothing to compare.
pytestmark = pytest.mark.skipif(
    not _extension.is_available(), reason=str(_extension.unavailable_reason())
)
SHAPES = {  # F, H = W
    "small": (8, 4),
    "F16": (16, 28),
    "F24": (24, 28),
    "F32": (32, 28),
    "F40": (40, 28),
    "F40 7x7": (40, 7),
}
BATCH = 32
ROUNDS = 7


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", SHAPES)
def bench_gated_block(
    benchmark: Any, capsys: pytest.CaptureFixture[str], shape: str, dtype: torch.dtype
) -> None:
    if benchmark.disabled and shape != "small":
        pytest.skip("without timing, the smallest shape shows that the benchmark runs")
    f, size = SHAPES[shape]
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int, scale: float = 1.0) -> Tensor:
        return torch.randn(shape, generator=generator) * scale

    def image() -> Tensor:
        return draw(BATCH, f, size, size).to(dtype).to(memory_format=torch.channels_last)

    kernel_scale = (8 * f) ** -0.5
    weights = [
        draw(f, 2 * f, 2, 2, scale=kernel_scale),
        draw(f),
        draw(2 * f, 2 * f, 2, 2, scale=kernel_scale),
        draw(2 * f),
        draw(f, 2 * f, 1, 1, scale=(2 * f) ** -0.5),
        draw(f),
    ]
    leaves = [t.requires_grad_() for t in (image(), image(), *weights)]
    grad_y = image()

    def block(impl: Any) -> Callable[..., Tensor]:
        def run(x: Tensor, skip: Tensor, *w: Tensor) -> Tensor:
            return gated_resnet(
                *(x, (w[0], w[1]), (w[2], w[3]), skip, (w[4], w[5])), shift="down_right", impl=impl
            )

        return run

    def step(run: Callable[..., Tensor]) -> Callable[[], tuple[Tensor, ...]]:
        def both_ways() -> tuple[Tensor, ...]:
            with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
                y = run(*leaves)
            return torch.autograd.grad(y, leaves, grad_y)

        return both_ways

    contenders = {"eager": step(block("reference")), "native": step(block("native"))}
    if not benchmark.disabled:
        torch.compiler.reset()
        contenders["compile"] = step(torch.compile(block("reference"), fullgraph=True))
    expected = contenders["eager"]()
    for run in contenders.values():
        for got, want in zip(run(), expected, strict=True):
            error = (got - want).float().norm() / want.float().norm()
            assert error < (1e-5 if dtype == torch.float32 else 2e-2)
    if benchmark.disabled:
        benchmark.pedantic(contenders["native"])
        return

    seconds = interleave(contenders)
    flops = 3 * 2 * BATCH * size * size * 26 * f * f
    benchmark.extra_info.update(
        threads=torch.get_num_threads(),
        torch=torch.__version__,
        load=os.getloadavg()[0],
        instruction_set=_extension.extension().gated_block_instruction_sets()[-1],
        gflops=flops / statistics.median(seconds["native"]) / 1e9,
    )
    for name in ("eager", "compile"):
        pairs = zip(seconds[name], seconds["native"], strict=True)
        benchmark.extra_info[f"{name}/native"] = statistics.median(a / b for a, b in pairs)
    benchmark.pedantic(contenders["native"], rounds=ROUNDS, warmup_rounds=1)
    with capsys.disabled():
        info = benchmark.extra_info
        times = ", ".join(f"{k} {statistics.median(v) * 1e3:.2f} ms" for k, v in seconds.items())
        print(
            f"\n{shape} {str(dtype)[6:]}: {times}; eager / native {info['eager/native']:.2f}, "
            f"compile / native {info['compile/native']:.2f}; native {info['gflops']:.0f} GFLOP/s; "
            f"load {info['load']:.1f}"
        )


def interleave(contenders: dict[str, Callable[[], Any]]) -> dict[str, list[float]]:
    """CPU seconds of every contender in every round, after two rounds of warm-up."""
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for i in range(ROUNDS + 2):
        for name, run in contenders.items():
            start = time.thread_time()
            run()
            if i >= 2:
                seconds[name].append(time.thread_time() - start)
    return seconds
