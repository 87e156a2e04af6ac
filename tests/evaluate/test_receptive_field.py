"""Receptive fields: two streams see the whole past and nothing else; a masked stack is blind."""

from __future__ import annotations

import itertools

import pytest
import torch

import dsmooth
from dsmooth.config import ModelConfig
from dsmooth.evaluate.receptive_field import causal, influence, receptive_fields

pytestmark = pytest.mark.quick


def test_two_streams_see_the_whole_past_and_nothing_else() -> None:
    """At three resnets per block; with fewer some of the row above is missed."""
    torch.manual_seed(1)
    config = ModelConfig(n_filters=4, n_resnet=3, n_mix=1, dropout=0.0)
    network = dsmooth.PixelCNNpp(config).double().eval()
    for row, column in itertools.product((0, 1, 4, 7), (0, 3, 7)):
        reached = influence(network, 8, row, column) > 0
        assert reached.equal(causal(8, row, column)), (row, column)


def test_influence_is_the_gradient() -> None:
    """The gradient of a linear network is its weights."""
    torch.manual_seed(0)
    conv = torch.nn.Conv2d(1, 2, 3, padding=1).double()
    field = influence(conv, 5, 2, 3)
    expected = torch.zeros(5, 5, dtype=torch.float64)
    expected[1:4, 2:5] = conv.weight.detach()[:, 0].abs().mean(0)
    torch.testing.assert_close(field, expected, rtol=1e-15, atol=0)


def test_the_figure_is_of_these_networks_and_always_the_same() -> None:
    state = torch.random.get_rng_state()
    field = receptive_fields()
    assert torch.random.get_rng_state().equal(state)
    assert field == receptive_fields()
    stack, streams = field.networks["masked-stack"], field.networks["two-streams"]
    assert field.causal == 8 * 16 + 8
    assert (streams.reached, streams.blind_spot, streams.leaks) == (136, 0, 0)
    assert (stack.reached, stack.blind_spot, stack.leaks) == (115, 21, 0)
