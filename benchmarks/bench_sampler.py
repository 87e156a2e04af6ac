"""The cached sampler against plain sampling, one forward of the network per pixel.

    pytest benchmarks/bench_sampler.py

All threads of torch. Plain sampling would take minutes per image: a few eager forwards of the same
batch by the reference operations are timed and multiplied by H W, the number of pixels. The
contenders and a large torch.mm, for the peak, take turns within a round; medians over rounds are
printed. Images are checked against the network before a time is. With --benchmark-disable the
smallest case is checked and nothing is timed.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from dsmooth import ModelConfig, PixelCNNpp, _extension
from dsmooth.functional import logistic_mixture_sample, use_impl
from dsmooth.sampling import CachedSampler
from dsmooth.sampling.philox import Stage, image_words, to_uniform

# Without a C++ compiler there is no extension, and nothing to compare.
pytestmark = pytest.mark.skipif(
    not _extension.is_available(), reason=str(_extension.unavailable_reason())
)
ROUNDS = 3
MM_SIZE = 1536


@dataclass(frozen=True)
class Case:
    """`conditionings`: the models that an image takes, one after the other."""

    batch: int
    conditionings: tuple[str, ...] = ("none",)
    dtype: torch.dtype = torch.float32
    channels: int = 1
    n_filters: int = 40
    n_resnet: int = 5
    size: int = 28
    n_mix: int = 10


CASES = {
    "small": Case(2, n_filters=8, n_resnet=1, size=8),
    "mnist-1": Case(1),
    "mnist-64": Case(64),
    "mnist-256": Case(256),
    "mnist-64-bf16": Case(64, dtype=torch.bfloat16),
    "two-step-64": Case(64, ("none", "stack")),
    "two-step-concat-64": Case(64, ("none", "concat")),
    "cifar-16": Case(16, channels=3, n_filters=160, size=32),
    "cifar-64": Case(64, channels=3, n_filters=160, size=32),
    "cifar-16-bf16": Case(16, dtype=torch.bfloat16, channels=3, n_filters=160, size=32),
}


@pytest.mark.parametrize("name", CASES)
def bench_sampler(benchmark: Any, capsys: pytest.CaptureFixture[str], name: str) -> None:
    if benchmark.disabled and name != "small":
        pytest.skip("without timing, the smallest case shows that the benchmark runs")
    case = CASES[name]
    models = [make_model(case, conditioning) for conditioning in case.conditionings]
    samplers = [CachedSampler(model, case.dtype) for model in models]
    shape = (case.batch, case.channels, case.size, case.size)

    def cached() -> Tensor:
        x: Tensor | None = None
        for sampler in samplers:
            x = sampler.sample(case.batch, case.size, case.size, context=x)
        assert x is not None
        return x

    @torch.no_grad()
    def forwards() -> None:
        """What plain sampling does for one pixel of every image."""
        with use_impl("reference"):
            for model in models:
                given = None if model.config.conditioning == "none" else torch.zeros(shape)
                model.decode(torch.zeros(shape), model.encode_context(torch.zeros(shape), given))

    first = samplers[0].sample(case.batch, case.size, case.size)
    check(models[0], first, case.dtype)
    if benchmark.disabled:
        benchmark(cached)
        return
    with FlopCounterMode(display=False) as counter:
        forwards()
    flops = counter.get_total_flops()
    a = torch.randn(MM_SIZE, MM_SIZE)
    contenders = {"plain": forwards, "cached": cached, "mm": lambda: a @ a}
    seconds: dict[str, list[float]] = {key: [] for key in contenders}
    for _ in range(ROUNDS):
        for key, run in contenders.items():
            seconds[key].append(timed(run))
    benchmark.pedantic(cached, rounds=1)
    median = {key: statistics.median(values) for key, values in seconds.items()}
    pixels = case.size**2
    ratio = statistics.median(
        pixels * plain / fast
        for plain, fast in zip(seconds["plain"], seconds["cached"], strict=True)
    )
    peak = 2 * MM_SIZE**3 / median["mm"]
    rate = flops / median["cached"]
    with capsys.disabled():
        print(
            f"\n{name}: {case.batch / median['cached']:.3g} img/s, "
            f"{ratio:,.0f} x plain ({case.batch / median['plain'] / pixels:.3g} img/s), "
            f"{rate / 1e9:.0f} GFLOP/s, {rate / peak:.0%} of torch.mm's {peak / 1e9:.0f}, "
            f"{torch.get_num_threads()} threads, {samplers[0].instruction_set}"
        )


def timed(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def make_model(case: Case, conditioning: str) -> PixelCNNpp:
    torch.manual_seed(0)
    model = PixelCNNpp(
        ModelConfig(
            image_channels=case.channels,
            n_filters=case.n_filters,
            n_resnet=case.n_resnet,
            n_mix=case.n_mix,
            conditioning=conditioning,  # type: ignore[arg-type]
        )
    ).eval()
    with torch.no_grad():
        model.head.weight_g.mul_(0.1)
        model.head.bias[case.n_mix :].view(case.channels, -1, case.n_mix)[:, 1] = -3
    return model


@torch.no_grad()
def check(model: PixelCNNpp, x: Tensor, dtype: torch.dtype) -> None:
    """The images are those of the network: redraw their pixels from a forward on themselves."""
    n = min(4, x.shape[0])
    height, width = x.shape[2:]
    words = image_words(n, height * width, seed=0, stage=Stage.SAMPLE)
    uniforms = to_uniform(words).float().view(n, height, width, 4).permute(0, 3, 1, 2)
    again = logistic_mixture_sample(model(x[:n]), uniforms, x.shape[1])
    # What differs is a component chosen within rounding of a boundary.
    tolerance, flips = (1e-3, 1e-3) if dtype == torch.float32 else (5e-2, 3e-2)
    assert ((again - x[:n]).abs() > tolerance).float().mean() < flips
