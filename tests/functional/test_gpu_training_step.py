"""On a GPU, the kernels of a training step outside of its layers: the CPU's bits, or nearly."""

from __future__ import annotations

import pytest
import torch

from dsmooth import GaussianSmoothing, philox
from dsmooth.functional import use_impl
from dsmooth.functional.image_words import image_words
from dsmooth.functional.weight_norm import weight_norm
from dsmooth.philox import Stream

pytestmark = pytest.mark.gpu


def test_words_have_the_bits_of_the_cpu() -> None:
    for seed, first in ((0, 0), (2**64 - 1, 2**32 - 2)):
        where = {"seed": seed, "first_index": first, "stream": Stream.SMOOTHING, "repeat": 3}
        expected = philox.image_words(5, 200, **where)
        assert torch.equal(image_words(5, 200, device="cuda", **where).cpu(), expected)


def test_noise_is_that_of_the_cpu() -> None:
    x, smoothing = torch.rand(4, 1, 28, 28), GaussianSmoothing(0.5)
    expected = smoothing.sample(x, seed=1, first_index=2)
    got = smoothing.sample(x.cuda(), seed=1, first_index=2)
    torch.testing.assert_close(got.cpu(), expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("transposed", [False, True])
def test_weight_norm_is_that_of_pytorch(transposed: bool) -> None:
    torch.manual_seed(0)
    v = torch.randn(160, 160, 2, 3, device="cuda").to(memory_format=torch.channels_last)
    leaves = [v.requires_grad_(), torch.rand(160, device="cuda", requires_grad=True)]
    results = []
    for impl in ("reference", "triton"):
        with use_impl(impl):
            w = weight_norm(*leaves, transposed=transposed)
        results.append([w, *torch.autograd.grad(w, leaves, v.detach().sin())])
    for got, expected in zip(*results, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)
