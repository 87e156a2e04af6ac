"""`SmoothedPair.sample`: x~ from the noisy model, then x from the denoiser: the packaged pair, and
both conditionings at the paper's size.

The contender is plain sampling of the same batch. One forward per model is timed, and multiplied by
the number of pixels; a context is encoded once.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch

from benchmarks.measure import Bench, Work, full, matmul, quick, smoke
from benchmarks.networks import (
    CIFAR,
    MNIST,
    SMALL,
    Network,
    check_samples,
    flops_of_forward,
    make_pair,
    plain_pass,
    same_products,
    tile,
)
from dsmooth import SmoothedPair
from dsmooth.sampling import CachedSampler

pytestmark = pytest.mark.usefixtures("native")


@pytest.mark.parametrize(
    ("network", "conditioning", "batch"),
    [
        smoke(SMALL, "concat", 2, id="small"),
        quick(MNIST, "stack", 64, id="mnist-stack-64"),
        quick(MNIST, "concat", 64, id="mnist-concat-64"),
        full(MNIST, "stack", 1, id="mnist-stack-1"),
        full(CIFAR, "stack", 16, id="cifar-stack-16"),
    ],
)
def bench_two_step(bench: Bench, network: Network, conditioning: Any, batch: int) -> None:
    pair = make_pair(network, conditioning)
    models = pair.noisy, pair.denoiser
    passes = [plain_pass(model, network.shape(batch)) for model in models]

    def plain() -> None:
        for one_pixel in passes:
            one_pixel()

    check_samples(models[0], pair.sample(batch, method="noisy"))
    assert torch.isfinite(pair.sample(batch)).all()
    flops = sum(flops_of_forward(model, network.shape(batch)) for model in models)
    bench.compare(
        {"plain": plain, "two-step": lambda: pair.sample(batch)},
        "two-step",
        limits={"torch.mm": lambda: matmul(torch.float32)},
        rounds=3,
        calls={"plain": network.size**2},
        shape=network.shape(batch),
        work=Work(batch, flops),
    )


@pytest.mark.parametrize(
    ("name", "batch", "dtype"),
    [
        smoke("mnist", 2, torch.float32, id="packaged-2"),
        *(
            quick(name, n, dtype, id=f"{name}-{n}{suffix}")
            for name in ("mnist", "mnist-classes")
            for n in (1, 64)
            for dtype, suffix in ((torch.float32, ""), (torch.bfloat16, "-bf16"))
        ),
    ],
)
def bench_packaged(bench: Bench, name: str, batch: int, dtype: torch.dtype) -> None:
    """The pairs that come with the package, beside the peak of the tile that multiplies, torch.mm
    of the same products, and a large torch.mm."""
    bench.require(dtype)
    pair = SmoothedPair.from_pretrained(name)
    models = pair.noisy, pair.denoiser
    shape = (batch, 1, *pair.image_size)
    passes = [plain_pass(model, shape) for model in models]
    precision = "bfloat16" if dtype == torch.bfloat16 else "float32"

    def plain() -> None:
        for one_pixel in passes:
            one_pixel()

    bench.compare(
        {"plain": plain, "two-step": lambda: pair.sample(batch, precision=precision)},
        "two-step",
        limits={
            "the tile": lambda: tile(CachedSampler(models[0], dtype)),
            "torch.mm": lambda: matmul(dtype),
            "torch.mm of the same products": lambda: same_products(
                models, shape[3], dtype, min(batch, 8)
            ),
        },
        rounds=7,
        calls={"plain": shape[2] * shape[3]},
        shape=shape,
        dtype=dtype,
        work=Work(batch, sum(flops_of_forward(model, shape) for model in models)),
    )
