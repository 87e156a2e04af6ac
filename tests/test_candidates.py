"""Completion by candidates: its distribution against that of all completions, enumerated."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
import torch
from torch import Tensor

import dsmooth
from dsmooth.models import Models
from dsmooth.sampling.cached import Sampler
from dsmooth.sampling.candidates import draw_weighted
from dsmooth.sampling.request import Request, known_pixels
from tests.helpers.tiny_pairs import tiny_pair

pytestmark = pytest.mark.quick

DRAWS = 2000
FIRST_ROWS, LAST_ROWS = slice(0, 3), slice(1, 4)


def binary_network() -> dsmooth.PixelCNNpp:
    """A network of 4 x 4 images whose pixels are black or white and depend on each other."""
    torch.manual_seed(0)
    config = dsmooth.ModelConfig(
        n_filters=4, n_resnet=1, n_mix=1, dropout=0.0, likelihood="discretized", atoms=(0, 255)
    )
    model = dsmooth.PixelCNNpp(config).eval()
    with torch.no_grad():
        model.head.weight_g.mul_(4)
        model.head.bias.zero_()
        model.head.weight_g[0] = 0  # the logistic component
        model.head.bias[0] = -60
    return model


def distance(model: dsmooth.PixelCNNpp, known: slice, candidates: int) -> float:
    """Total variation between drawn completions and p(missing | known), missing 4 pixels."""
    mask = torch.zeros(1, 4, 4, dtype=torch.bool)
    mask[:, known] = True
    x = torch.where(torch.rand(4, 4, generator=torch.Generator().manual_seed(3)) < 0.5, 1.0, -1.0)
    every = x.expand(16, 1, 4, 4).clone()
    every[:, 0, ~mask[0]] = torch.tensor([*itertools.product((-1.0, 1.0), repeat=4)])
    with torch.no_grad():
        exact = model.log_prob(every).double().softmax(0)
    given = known_pixels(x.view(1, 1, 4, 4), mask, DRAWS)
    request = Request(DRAWS, seed=1, known=given)
    draw = Models({"plain": model}, None, (4, 4), ()).drawer(request, Sampler(), candidates)
    drawn = draw(request, lambda done: None)
    assert torch.equal(drawn[:, 0][given.mask], x[mask[0]].repeat(DRAWS))
    bits = (drawn[:, 0][~given.mask].view(DRAWS, 4) > 0).long()
    found = torch.bincount(bits @ torch.tensor([8, 4, 2, 1]), minlength=16) / DRAWS
    return float((found - exact).abs().sum()) / 2


def test_a_prefix_is_exact_other_masks_are_far_off_and_candidates_come_near() -> None:
    model = binary_network()
    noise = 16**0.5 / (2 * DRAWS**0.5)  # a bound on the expected distance of exact draws
    assert distance(model, FIRST_ROWS, candidates=1) < noise
    alone, few, many = (distance(model, LAST_ROWS, candidates=m) for m in (1, 4, 16))
    assert alone > 0.3
    assert few < 0.5 * alone
    assert many < 2 * noise


def test_the_weight_of_what_is_known_throughout_is_that_of_the_bound() -> None:
    pair: dsmooth.SmoothedPair = tiny_pair()
    x = torch.randint(0, 256, (3, 1, 8, 8), generator=torch.Generator().manual_seed(0)) / 127.5 - 1
    known = known_pixels(x, torch.ones(1, 8, 8, dtype=torch.bool), 3)
    request = Request(3, seed=5, first_index=7, known=known)
    found, log_weight = draw_weighted(pair, request, Sampler(), pair.image_size)
    assert torch.equal(found, x)
    expected: Tensor = pair.elbo(x, seed=5, first_index=7)
    torch.testing.assert_close(log_weight.float(), expected, rtol=1e-5, atol=1e-3)


def test_candidates_of_a_pair_keep_what_is_known_and_are_refused_elsewhere() -> None:
    pair = tiny_pair()
    networks = {"noisy": pair.noisy, "denoiser": pair.denoiser}
    models = Models(networks, pair, pair.image_size, ())
    x, mask = torch.zeros(1, 1, 8, 8) + 1 / 255, torch.zeros(1, 8, 8, dtype=torch.bool)
    mask[:, 2:5] = True
    request = Request(4, seed=3, known=known_pixels(x, mask, 4))
    drawn = models.drawer(request, Sampler(), 3)(request, lambda done: None)
    assert (drawn[:, 0, 2:5] == x[0, 0, 0, 0]).all()
    part = models.drawer(request, Sampler(), 3)(request.part(1, 2), lambda done: None)
    assert torch.equal(part, drawn[1:3])
    with pytest.raises(ValueError, match="candidates need method two-step and one noise level"):
        models.drawer(replace(request, method="noisy"), Sampler(), 3)
