"""`SmoothedPair.sample` against cached sampling in plain PyTorch, eager and by torch.compile.

All draw the same images from the same noise, which is checked first (benchmarks/incremental.py).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial

import pytest
import torch

from benchmarks.incremental import IncrementalPair
from benchmarks.measure import Bench, Run, Work, quick, smoke
from benchmarks.networks import SMALL, flops_of_forward, make_pair, never_fall_back
from dsmooth import SmoothedPair
from dsmooth.sampling import sequential_sample

pytestmark = pytest.mark.usefixtures("native", "one_thread")
PACKAGED = partial(SmoothedPair.from_pretrained, "mnist")


@pytest.mark.parametrize(
    ("make", "batch"),
    [
        smoke(partial(make_pair, SMALL, "concat"), 2, id="small"),
        quick(PACKAGED, 1, id="mnist-1"),
        quick(PACKAGED, 64, id="mnist-64"),
    ],
)
def bench_incremental(bench: Bench, make: Callable[[], SmoothedPair], batch: int) -> None:
    """Two-step sampling in float32 by one thread, in CPU seconds of the process."""
    pair = make()
    label = torch.full((batch,), -1) if pair.classes else None
    eager = IncrementalPair(pair)
    contenders: dict[str, Run] = {"cached PyTorch": partial(eager.sample, batch)}
    if bench.smoke:
        x, (height, width) = eager.sample(batch), pair.image_size
        draw = partial(sequential_sample, n=batch, height=height, width=width, seed=0)
        expected = draw(pair.denoiser, context=draw(pair.noisy))
        torch.testing.assert_close(x, expected, rtol=1e-3, atol=1e-3)
    else:
        never_fall_back()
        compiled = IncrementalPair(pair, compiled=True)
        contenders["compiled"] = partial(compiled.sample, batch)
    contenders["two-step"] = partial(pair.sample, batch, seed=0, label=label, precision="float32")
    images = {name: draw() for name, draw in contenders.items()}
    for name, x in images.items():
        # The rest of an image differs if a component is chosen within rounding of a boundary.
        same = ((x - images["two-step"]).abs() < 1e-3).flatten(1).all(1)
        assert same.double().mean() > 0.9, name
    models, shape = (pair.noisy, pair.denoiser), tuple(images["two-step"].shape)
    bench.compare(
        contenders,
        "two-step",
        rounds=3,
        clock=time.process_time,
        shape=shape,
        work=Work(batch, sum(flops_of_forward(model, shape) for model in models)),
    )
