"""Two-step sampling by `SmoothedPair.sample`: the packaged pair, and both conditionings.

The contender is plain sampling: one forward per model is timed and multiplied by the number of
pixels; a context is encoded once.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
import torch

from benchmarks.measure import Bench, Work, full, quick, smoke
from benchmarks.networks import (
    CIFAR,
    MNIST,
    SMALL,
    check_samples,
    flops_of_forward,
    make_pair,
    plain_pass,
)
from dsmooth import SmoothedPair
from dsmooth.sampling.request import draws_faster_in_bfloat16

pytestmark = pytest.mark.usefixtures("native")
DTYPES = {"": torch.float32, "-bf16": torch.bfloat16}


@pytest.mark.parametrize(
    ("make", "batch", "dtype"),
    [
        smoke(partial(make_pair, SMALL, "concat"), 2, torch.float32, id="small"),
        quick(partial(make_pair, MNIST, "stack"), 64, torch.float32, id="mnist-stack-64"),
        quick(partial(make_pair, MNIST, "concat"), 64, torch.float32, id="mnist-concat-64"),
        full(partial(make_pair, MNIST, "stack"), 1, torch.float32, id="mnist-stack-1"),
        full(partial(make_pair, CIFAR, "stack"), 16, torch.float32, id="cifar-stack-16"),
        *(
            quick(partial(SmoothedPair.from_pretrained, "mnist"), n, dtype, id=f"mnist-{n}{suffix}")
            for n in (1, 64)
            for suffix, dtype in DTYPES.items()
        ),
    ],
)
def bench_two_step(
    bench: Bench, make: Callable[[], SmoothedPair], batch: int, dtype: torch.dtype
) -> None:
    bench.require(dtype, draws_faster_in_bfloat16)
    pair = make()
    models = pair.noisy, pair.denoiser
    shape = (batch, pair.noisy.config.image_channels, *pair.image_size)
    passes = [plain_pass(model, shape) for model in models]
    precision = "bfloat16" if dtype == torch.bfloat16 else "float32"

    def plain() -> None:
        for one_pixel in passes:
            one_pixel()

    if not pair.noisy.config.condition_size:  # with classes, images have random classes
        x_tilde = pair.sample(batch, method="noisy", precision=precision)
        check_samples(models[0], x_tilde, dtype)
    assert torch.isfinite(pair.sample(batch, precision=precision)).all()
    bench.compare(
        {"plain": plain, "two-step": lambda: pair.sample(batch, precision=precision)},
        "two-step",
        limits=["torch.mm"],
        rounds=5,
        calls={"plain": shape[2] * shape[3]},
        shape=shape,
        dtype=dtype,
        work=Work(batch, sum(flops_of_forward(model, shape) for model in models)),
    )
