"""The cached sampler against plain sampling, one forward of the network per pixel.

Plain sampling would take minutes per image: one eager forward of the reference is timed and
multiplied by H W, the number of pixels. `bench_exact` runs plain sampling for real, where it is
small enough. Images are checked against the network before the timing.
"""

from __future__ import annotations

import pytest
import torch

from benchmarks.measure import Bench, Work, full, quick, smoke
from benchmarks.networks import (
    CIFAR,
    MNIST,
    SMALL,
    Network,
    check_samples,
    flops_of_forward,
    plain_pass,
)
from dsmooth.machine import has_fast_bfloat16, torch_threads
from dsmooth.sampling import CachedSampler, sequential_sample

pytestmark = pytest.mark.usefixtures("native")
BF16 = torch.bfloat16


@pytest.mark.parametrize(
    ("network", "batch", "dtype"),
    [
        smoke(SMALL, 2, torch.float32, id="small"),
        *(full(MNIST, 2**i, torch.float32, id=f"mnist-{2**i}") for i in (1, 2, 3, 5, 7, 8)),
        *(quick(MNIST, n, torch.float32, id=f"mnist-{n}") for n in (1, 16, 64)),
        quick(MNIST, 64, BF16, id="mnist-64-bf16"),
        *(full(CIFAR, n, torch.float32, id=f"cifar-{n}") for n in (1, 4, 16, 64)),
        full(CIFAR, 16, BF16, id="cifar-16-bf16"),
        *(quick(Network(size=n), 16, torch.float32, id=f"size-{n}x{n}") for n in (16, 28)),
        *(full(Network(size=n), 16, torch.float32, id=f"size-{n}x{n}") for n in (40, 56, 80)),
    ],
)
def bench_speedup(bench: Bench, network: Network, batch: int, dtype: torch.dtype) -> None:
    """Batch sweep, and time against H W: linear, where plain sampling's is quadratic."""
    bench.require(dtype, has_fast_bfloat16)
    model = network.build()
    sampler = CachedSampler(model, dtype)
    size = network.size

    def cached() -> torch.Tensor:
        return sampler.sample(batch, size, size)

    check_samples(model, cached(), dtype)
    flops = flops_of_forward(model, network.shape(batch))
    shape = network.shape(batch)
    # A forward that takes ten seconds needs no warming up.
    rounds, warmup = (3, 0) if flops > 1e12 else (7, 1)
    contenders = {"plain": plain_pass(model, shape), "cached": cached}
    turns = bench.compare(
        contenders,
        "cached",
        limits=["torch.mm"],
        rounds=rounds,
        warmup=warmup,
        calls={"plain": size**2},
        shape=shape,
        dtype=dtype,
        work=Work(batch, flops),
    )
    if turns and bench.case == "mnist-16":  # on a busy machine, too
        assert turns.ratio("plain", "cached").median >= 300


@pytest.mark.parametrize(
    ("network", "batch"),
    [
        smoke(SMALL, 2, id="small"),
        quick(Network(n_filters=16, n_resnet=1, size=12), 16, id="exact-12x12"),
    ],
)
def bench_exact(bench: Bench, network: Network, batch: int) -> None:
    """The cached sampler and plain sampling, both drawing whole images."""
    model, size = network.build(), network.size
    sampler = CachedSampler(model)
    contenders = {
        "cached": lambda: sampler.sample(batch, size, size),
        "sequential": lambda: sequential_sample(model, batch, height=size, width=size),
    }
    samples = {name: run() for name, run in contenders.items()}
    for x in samples.values():
        torch.testing.assert_close(x, samples["sequential"], rtol=1e-3, atol=1e-3)
    work = Work(batch, flops_of_forward(model, network.shape(batch)))
    with torch_threads(1):
        bench.compare(contenders, "cached", rounds=3, shape=network.shape(batch), work=work)
