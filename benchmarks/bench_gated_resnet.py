"""One gated resnet with a skip, forward and backward: native against eager and compiled PyTorch.

One thread, channels_last, batch 32, in seconds of the thread's CPU time.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks.measure import Bench, Work, full, quick, smoke
from dsmooth.functional import gated_resnet
from dsmooth.machine import has_fast_bfloat16

pytestmark = pytest.mark.usefixtures("native", "one_thread")
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
BATCH = 32


@pytest.mark.parametrize(
    ("f", "size", "dtype"),
    [
        smoke(8, 4, torch.bfloat16, id="small"),
        *(quick(40, 28, dtype, id=f"F40-{name}") for name, dtype in DTYPES.items()),
        *(full(16, 28, dtype, id=f"F16-{name}") for name, dtype in DTYPES.items()),
    ],
)
def bench_gated_resnet(bench: Bench, f: int, size: int, dtype: torch.dtype) -> None:
    bench.require(dtype, has_fast_bfloat16)
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    def image() -> Tensor:
        return draw(BATCH, f, size, size).to(dtype).to(memory_format=torch.channels_last)

    kernels = ((f, 2 * f, 2, 2), (2 * f, 2 * f, 2, 2), (f, 2 * f, 1, 1))
    weights: list[Tensor] = []
    for kernel in kernels:
        weights += draw(*kernel) * math.prod(kernel[1:]) ** -0.5, draw(kernel[0])
    leaves = [t.requires_grad_() for t in (image(), image(), *weights)]
    grad_y = image()

    def block(impl: Any) -> Callable[..., Tensor]:
        def run(x: Tensor, skip: Tensor, *w: Tensor) -> Tensor:
            conv_in, conv_out, nin_skip = (w[0], w[1]), (w[2], w[3]), (w[4], w[5])
            return gated_resnet(x, conv_in, conv_out, skip, nin_skip, shift="down_right", impl=impl)

        return run

    def step(run: Callable[..., Tensor]) -> Callable[[], tuple[Tensor, ...]]:
        def both_ways() -> tuple[Tensor, ...]:
            with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
                y = run(*leaves)
            return torch.autograd.grad(y, leaves, grad_y)

        return both_ways

    contenders = {"eager": step(block("reference")), "native": step(block("native"))}
    if not bench.smoke:
        torch.compiler.reset()
        contenders["compile"] = step(torch.compile(block("reference"), fullgraph=True))
    expected = contenders["eager"]()
    for run in contenders.values():
        for got, want in zip(run(), expected, strict=True):
            error = (got - want).float().norm() / want.float().norm()
            assert error < (1e-5 if dtype == torch.float32 else 2e-2)
    pixels = BATCH * size * size
    # Forward: x, skip; y, h, gates. Backward: dy, x, skip, h, gates; dx, dskip.
    moved = 14 * f * pixels * dtype.itemsize
    bench.compare(
        contenders,
        "native",
        limits=["torch.mm", "copy"],
        rounds=7,
        warmup=2,
        clock=time.thread_time,
        shape=(BATCH, f, size, size),
        dtype=dtype,
        work=Work(images=BATCH, flops=3 * 2 * pixels * 26 * f * f, bytes=moved),
    )
