"""Kernels of a training step beside its layers, under the interpreter (see test_interpreter.py)."""

from __future__ import annotations

import pytest
import torch

from dsmooth import philox
from dsmooth.functional import use_impl
from dsmooth.functional.device_words import device_words
from dsmooth.kernels.launch import INTERPRETED
from dsmooth.philox import Stream
from dsmooth.smoothing import SMOOTHINGS

assert INTERPRETED, "run with TRITON_INTERPRET=1"

pytestmark = pytest.mark.grid


@pytest.mark.parametrize("seed", [0, 1, 0x1234_5678_9ABC_DEF0, 2**64 - 1])
@pytest.mark.parametrize("first", [0, 2**32 - 2, torch.tensor(2**40 + 7)], ids=str)
@pytest.mark.parametrize(("images", "counters"), [(1, 1), (3, 130), (0, 4), (2, 0)])
def test_words_are_those_of_philox(images, counters, first, seed) -> None:
    where = {"first_index": first, "stream": Stream.CLEAN_NOISE, "repeat": 2**24 - 1}
    expected = philox.image_words(images, counters, seed=seed, **where)
    with use_impl("triton"):
        got = device_words(images, counters, seed=seed, **where)
        assert torch.equal(got, expected)
        if seed < 2**63:
            words = device_words(images, counters, seed=torch.tensor(seed), **where)
            assert torch.equal(words, expected)


def test_what_is_out_of_range_is_refused_as_by_philox() -> None:
    with use_impl("triton"):
        for wrong in ({"seed": 2**64}, {"first_index": -1}, {"repeat": 2**24}, {"stream": 99}):
            named = {"seed": 0, "first_index": 0, "repeat": 0, "stream": Stream.FLIP} | wrong
            with pytest.raises(ValueError, match=r"must|not a valid"):
                device_words(1, 1, **named)


@pytest.mark.parametrize("kind", SMOOTHINGS)
@pytest.mark.parametrize("shape", [(2, 1, 3, 3), (1, 3, 4, 5)])
def test_noise_has_the_bits_of_the_cpu(kind: str, shape: tuple[int, ...]) -> None:
    x = torch.rand(shape, requires_grad=True)
    smoothing = SMOOTHINGS[kind](0.3)
    expected = smoothing.sample(x, seed=3, first_index=7, repeat=1)
    with use_impl("triton"):
        got = smoothing.sample(x, seed=3, first_index=7, repeat=1)
        assert torch.equal(got, expected)
        (slope,) = torch.autograd.grad(got.sum(), x)
    assert torch.equal(slope, torch.ones_like(x))
