"""Ratios that must hold even on a busy machine, far below what is measured on a calm one.

pytest benchmarks/gates.py
"""

from __future__ import annotations

import pytest

from benchmarks.bench_logistic_mixture import SHAPES, check, images_and_params, make_contenders
from benchmarks.measure import take_turns
from benchmarks.networks import MNIST, check_samples, plain_pass
from dsmooth.machine import keep_freed_memory, torch_threads
from dsmooth.sampling import CachedSampler

pytestmark = pytest.mark.usefixtures("native")


def test_cached_sampling_beats_plain_sampling_300_times() -> None:
    """The paper's MNIST network at batch 16; plain sampling takes a forward per pixel."""
    model, size = MNIST.build(), MNIST.size
    sampler = CachedSampler(model)
    contenders = {
        "plain": plain_pass(model, MNIST.shape(16)),
        "cached": lambda: sampler.sample(16, size, size),
    }
    check_samples(model, sampler.sample(4, size, size))
    ratio = take_turns(contenders, 5, calls={"plain": size**2}).ratio("plain", "cached")
    assert ratio.median >= 300, ratio


def test_fused_loss_and_gradient_beat_eager_twice() -> None:
    with torch_threads(1):
        x, params = images_and_params(SHAPES["cifar"], "continuous", gradient=True)
        contenders = make_contenders(x, params, "continuous", gradient=True, compiled=False)
        check(contenders)
        keep_freed_memory()
        ratio = take_turns(contenders, rounds=15, warmup=2, before=1).ratio("eager", "native")
    assert ratio.median >= 2, ratio
