"""`SmoothedPair.sample` against cached sampling in plain PyTorch, eager and by torch.compile.

All draw the same images from the same noise, which is checked first (benchmarks/incremental.py).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor

from benchmarks.incremental import IncrementalPair
from benchmarks.measure import Bench, Work, quick, smoke
from benchmarks.networks import SMALL, flops_of_forward, make_pair, never_fall_back
from dsmooth import SmoothedPair
from dsmooth.config import Precision
from dsmooth.machine import has_fast_bfloat16
from dsmooth.sampling import sequential_sample

pytestmark = pytest.mark.usefixtures("native", "one_thread")
PACKAGED = partial(SmoothedPair.from_pretrained, "mnist")


@pytest.mark.parametrize(
    ("make", "batch", "dtype"),
    [
        smoke(partial(make_pair, SMALL, "concat"), 2, torch.float32, id="small"),
        *(
            quick(PACKAGED, n, dtype, id=f"mnist-{n}{suffix}")
            for suffix, dtype in (("", torch.float32), ("-bf16", torch.bfloat16))
            for n in (1, 64)
        ),
    ],
)
def bench_incremental(
    bench: Bench, make: Callable[[], SmoothedPair], batch: int, dtype: torch.dtype
) -> None:
    """Two-step sampling by one thread, all contenders in `dtype`, in CPU seconds of the process."""
    bench.require(dtype, has_fast_bfloat16)
    pair = make()
    precision: Precision = "bfloat16" if dtype == torch.bfloat16 else "float32"
    label = torch.full((batch,), -1) if pair.classes else None
    eager = IncrementalPair(pair, dtype=dtype)
    contenders: dict[str, Callable[[], Tensor]] = {"cached PyTorch": partial(eager.sample, batch)}
    if bench.smoke:
        x, (height, width) = eager.sample(batch), pair.image_size
        draw = partial(sequential_sample, n=batch, height=height, width=width, seed=0)
        expected = draw(pair.denoiser, context=draw(pair.noisy))
        torch.testing.assert_close(x, expected, rtol=1e-3, atol=1e-3)
    else:
        never_fall_back()
        compiled = IncrementalPair(pair, compiled=True, dtype=dtype)
        contenders["compiled"] = partial(compiled.sample, batch)
    contenders["two-step"] = partial(pair.sample, batch, seed=0, label=label, precision=precision)
    images = {name: draw() for name, draw in contenders.items()}
    for name, x in images.items():
        # The rest of an image differs if a component is chosen within rounding of a boundary.
        same = ((x - images["two-step"]).abs() < 1e-3).flatten(1).all(1)
        assert dtype != torch.float32 or same.double().mean() > 0.9, name
        assert x.isfinite().all(), name
    models, shape = (pair.noisy, pair.denoiser), tuple(images["two-step"].shape)
    bench.compare(
        contenders,
        "two-step",
        rounds=3,
        clock=time.process_time,
        shape=shape,
        dtype=dtype,
        work=Work(batch, sum(flops_of_forward(model, shape) for model in models)),
    )
