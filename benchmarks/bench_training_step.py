"""A training step of the whole network: native against eager PyTorch and torch.compile.

Batch 32 of 28x28 grey images, channels_last: forward, backward, clipping, Adam. "one-thread" counts
the thread's CPU seconds; "two-threads" wall-clock seconds, which need an idle machine. Compiling
takes minutes, so --quick leaves it out.
"""

from __future__ import annotations

import time

import pytest
import torch

from benchmarks.measure import CPU, Bench, Work, full, quick, smoke
from benchmarks.networks import Network, flops_of_forward, make_step
from dsmooth.machine import has_fast_bfloat16, torch_threads

pytestmark = pytest.mark.usefixtures("native")
BATCH = 32


@pytest.mark.parametrize(
    ("f", "r", "threads", "compiled"),
    [
        smoke(4, 1, 1, False, id="small"),
        *(quick(f, r, 1, False, id=f"F{f}-R{r}-one-thread") for f, r in ((24, 2), (40, 5))),
        full(16, 1, 1, False, id="F16-R1-one-thread"),
        full(24, 2, 2, True, id="F24-R2-two-threads"),
        full(40, 5, 2, True, id="F40-R5-two-threads"),
    ],
)
def bench_training_step(bench: Bench, f: int, r: int, threads: int, compiled: bool) -> None:
    size = 8 if bench.smoke else 28
    x = torch.rand(BATCH, 1, size, size, generator=torch.Generator().manual_seed(0)) * 2 - 1
    dtypes = [torch.float32, *([torch.bfloat16] if has_fast_bfloat16(CPU) else [])]
    chosen, name = dtypes[-1], str(dtypes[-1]).removeprefix("torch.")
    network = Network(n_filters=f, n_resnet=r, size=size)
    with torch_threads(threads):
        contenders = {
            f"{kind} {str(dtype)[6:]}": make_step(network.build(), x, impl, dtype)
            for impl, kind in (("reference", "eager"), ("native", "native"))
            for dtype in dtypes
        }
        if compiled:
            contenders[f"compile {name}"] = make_step(
                network.build(), x, "reference", chosen, compiled=True
            )
        first = {name: step() for name, step in contenders.items()}
        for contender, loss in first.items():
            assert abs(loss / first["eager float32"] - 1) < 5e-3, contender
        bench.compare(
            contenders,
            f"native {name}",
            limits=["torch.mm"],
            rounds=5,
            clock=time.thread_time if threads == 1 else time.perf_counter,
            shape=x.shape,
            dtype=chosen,
            work=Work(BATCH, 3 * flops_of_forward(network.build(), network.shape(BATCH))),
        )
