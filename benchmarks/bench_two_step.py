"""`SmoothedPair.sample`: x~ from the noisy model, then x from the denoiser, for both conditionings.

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
)

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
