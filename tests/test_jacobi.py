"""Jacobi sampling: the images of the sequential sampler, in no more forwards than pixels."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from dsmooth.sampling import jacobi_sample, sequential_sample
from tests.helpers.sampler_checks import ATOMS, GAUSSIAN, context_for, network

HEIGHT, WIDTH = 8, 4


@pytest.mark.grid
@pytest.mark.parametrize("by_row", [False, True])
@pytest.mark.parametrize(
    "mixture",
    [{}, {"likelihood": "discretized"}, ATOMS, GAUSSIAN],
    ids=["continuous", "discretized", "atoms", "gaussian"],
)
@pytest.mark.parametrize(
    ("conditioning", "channels"), [("none", 1), ("none", 3), ("stack", 1), ("concat", 3)]
)
def test_equals_sequential_sampling(
    conditioning: str, channels: int, mixture: dict[str, Any], by_row: bool
) -> None:
    model = network(conditioning=conditioning, channels=channels, n_filters=4, **mixture).double()
    context = context_for(model, 3, HEIGHT, WIDTH)
    context = None if context is None else context.double()
    settings = {"height": HEIGHT, "width": WIDTH, "seed": 3, "first_index": 5, "context": context}
    expected = sequential_sample(model, 3, **settings)
    x, iterations = jacobi_sample(model, 3, **settings, by_row=by_row)
    if model.config.likelihood == "discretized":
        assert torch.equal(x, expected)
    else:
        torch.testing.assert_close(x, expected, rtol=1e-12, atol=1e-12)
    # The last iteration of a band only confirms; a pixel more is exact after each of the others.
    most = HEIGHT * (WIDTH + 1) if by_row else HEIGHT * WIDTH + 1
    assert iterations.shape == (3,)
    assert iterations.dtype == torch.int64
    assert ((iterations >= (2 * HEIGHT if by_row else 2)) & (iterations <= most)).all()


def test_pixels_that_ignore_one_another_settle_at_once() -> None:
    model = network()
    with torch.no_grad():
        model.head.weight_g.zero_()
    _, iterations = jacobi_sample(model, 2, height=8, width=8)
    assert iterations.tolist() == [2, 2]
    _, iterations = jacobi_sample(model, 2, height=8, width=8, by_row=True)
    assert iterations.tolist() == [16, 16]


def test_the_answer_as_a_start_is_confirmed_in_one_iteration() -> None:
    model = network(likelihood="discretized")
    x, iterations = jacobi_sample(model, 2, height=8, width=8)
    again, confirmations = jacobi_sample(model, 2, height=8, width=8, start=x)
    assert torch.equal(again, x)
    assert confirmations.tolist() == [1, 1]
    assert (iterations > 2).all()


@pytest.mark.quick
def test_images_settle_one_by_one() -> None:
    model = network(likelihood="discretized").double()
    with torch.no_grad():
        model.head.weight_g.mul_(10)  # pixels that depend on one another
    x, iterations = jacobi_sample(model, 6, height=8, width=8, first_index=10)
    assert len(iterations.unique()) > 1
    for i in range(6):
        alone, count = jacobi_sample(model, 1, height=8, width=8, first_index=10 + i)
        assert torch.equal(alone[0], x[i])
        assert count == iterations[i]


def test_bad_start() -> None:
    with pytest.raises(ValueError, match=r"start must have shape \(2, 1, 4, 4\), got \(1, 1, 4, "):
        jacobi_sample(network(), 2, height=4, width=4, start=torch.zeros(1, 1, 4, 4))
    with pytest.raises(ValueError, match="height must be a positive multiple of 4, got 6"):
        jacobi_sample(network(), 2, height=6, width=4)
