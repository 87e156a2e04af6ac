"""Muon: what its step does to the kernels of weight norms."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable
from dataclasses import replace
from typing import get_args

import pytest
import torch
from torch import Tensor, nn

from dsmooth.config import OptimizerName
from dsmooth.data import load_dataset
from dsmooth.nn.layers import WeightNormConv
from dsmooth.training.optimizers import MOMENTUM, Muon, filters, polar_factor
from dsmooth.training.step import TrainState, kernel_rate
from tests.helpers.data_makers import random_dataset, refuses
from tests.helpers.tiny_runs import tiny

CPU = torch.device("cpu")
NAMES = get_args(OptimizerName)


def random_matrices(n: int, rows: int, columns: int, smallest: float) -> Tensor:
    """(n, rows, columns) with singular values from 1 down to `smallest`."""
    generator = torch.Generator().manual_seed(rows + columns)
    u, _, vh = torch.linalg.svd(
        torch.randn(n, rows, columns, generator=generator), full_matrices=False
    )
    values = torch.logspace(0, math.log10(smallest), min(rows, columns))
    return u * values @ vh


@pytest.mark.quick
@pytest.mark.parametrize("shape", [(16, 40), (40, 16), (24, 24), (1, 7), (7, 1)])
def test_the_polar_factor_keeps_singular_vectors_and_sets_values_to_one(shape) -> None:
    x = random_matrices(3, *shape, smallest=0.005)
    factor = polar_factor(x)
    u, _, vh = torch.linalg.svd(x, full_matrices=False)
    values = u.mT @ factor @ vh.mT
    diagonal = values.diagonal(dim1=1, dim2=2)
    assert (values - torch.diag_embed(diagonal)).abs().max() < 1e-3
    assert 0.87 < diagonal.min() <= diagonal.max() < 1.13
    assert torch.equal(polar_factor(torch.zeros(2, 3, 4)), torch.zeros(2, 3, 4))


def convolutions(shapes: Iterable[tuple[int, int, tuple[int, int], bool]]) -> list[WeightNormConv]:
    """Layers with gradients, channels_last as those of a network in training."""
    torch.manual_seed(5)
    layers = []
    for fan_in, fan_out, size, transposed in shapes:
        layer = WeightNormConv(fan_in, fan_out, size, transposed=transposed)
        layer = layer.to(memory_format=torch.channels_last)
        layer.weight_v.grad = torch.randn_like(layer.weight_v)
        layers.append(layer)
    return layers


SHAPES = [(4, 6, (2, 3), False), (4, 6, (2, 3), False), (6, 4, (2, 2), True), (2, 9, (1, 1), False)]


def stepped(
    layers: list[WeightNormConv], together: bool, steps: int = 2, scale: float = 1.0
) -> list[Tensor]:
    """Kernels after some steps of one gradient, all by one Muon or each by its own."""
    groups = [layers] if together else [[layer] for layer in layers]
    optimizers = [Muon(nn.ModuleList(group)) for group in groups]
    for layer in layers:
        layer.weight_v.grad *= scale
    for _ in range(steps):
        for optimizer in optimizers:
            optimizer.step(torch.tensor(0.1))
    return [layer.weight_v.detach() for layer in layers]


@pytest.mark.quick
def test_kernels_of_one_shape_step_as_if_alone_whatever_the_size_of_their_gradients() -> None:
    expected = stepped(convolutions(SHAPES), together=False)
    for scale in (1.0, 1e-6, 1e6):
        for v, other in zip(
            stepped(convolutions(SHAPES), together=True, scale=scale), expected, strict=True
        ):
            torch.testing.assert_close(v, other, rtol=0, atol=2e-6)


def test_filters_have_length_one_and_turn_by_the_angle() -> None:
    """A filter moves by the angle, root mean square; nearly at right angles, as gradients are."""
    layers = convolutions(SHAPES)
    weights = [layer.affine()[0].detach() for layer in layers]
    Muon(nn.ModuleList(layers))
    for layer, weight in zip(layers, weights, strict=True):
        torch.testing.assert_close(layer.affine()[0], weight)  # the function is the same
    before = [filters(layer.weight_v.detach().clone(), layer.transposed) for layer in layers]
    after = stepped(layers, together=True, steps=1)
    for old, layer, v in zip(before, layers, after, strict=True):
        new = filters(v, layer.transposed)
        torch.testing.assert_close(new.flatten(1).norm(dim=1), torch.ones(len(new)))
        angles = (new * old).flatten(1).sum(dim=1).clamp(max=1).acos()
        assert 0.05 < angles.square().mean().sqrt() < 0.1 * 1.13


def test_the_averages_have_the_names_of_their_kernels() -> None:
    layers = convolutions(SHAPES)
    muon = Muon(nn.ModuleList(layers))
    muon.step(0.1)
    for i, layer in enumerate(layers):
        gradient = filters(layer.weight_v.grad, layer.transposed).flatten(1)
        torch.testing.assert_close(muon.averages[str(i)], (1 - MOMENTUM) * gradient)


def test_a_frozen_kernel_keeps_still_and_the_rest_is_named() -> None:
    layers = nn.ModuleList(convolutions(SHAPES[:2]))
    layers[1].requires_grad_(False)
    before = layers[1].weight_v.clone()
    muon = Muon(layers)
    muon.step(0.1)
    assert torch.equal(layers[1].weight_v, before)
    assert set(muon.rest) == {name for name, _ in layers.named_parameters()} - {"0.weight_v"}


def test_a_step_has_the_momentum_of_nesterov() -> None:
    (layer,) = convolutions(SHAPES[:1])
    muon, average = Muon(nn.ModuleList([layer])), torch.zeros(1)
    for _ in range(2):
        v = filters(layer.weight_v.detach().clone(), False).flatten(1)
        layer.weight_v.grad = torch.randn_like(layer.weight_v)
        gradient = filters(layer.weight_v.grad, False).flatten(1).clone()
        average = torch.lerp(gradient, average, MOMENTUM)
        turned = polar_factor(torch.lerp(gradient, average, MOMENTUM)[None])[0]
        v -= 0.1 * max(1.0, v.shape[0] / v.shape[1]) ** 0.5 * turned
        muon.step(torch.tensor(0.1))
        new = filters(layer.weight_v.detach(), False).flatten(1)
        torch.testing.assert_close(new, v / v.norm(dim=1, keepdim=True))


def test_the_angle_follows_from_the_number_of_steps() -> None:
    config = tiny(optimizer="muon", images=8000, batch_size=8)
    assert kernel_rate(replace(config, kernel_rate=0.03)) == 0.03
    quarter = kernel_rate(replace(config, images=32_000))
    assert kernel_rate(config) == pytest.approx(2 * quarter)
    prolonged = replace(config, images=40_000, schedule_from=8000)
    assert kernel_rate(prolonged) == pytest.approx(quarter)
    assert kernel_rate(replace(config, images=8)) == kernel_rate(replace(config, images=80))


@pytest.mark.parametrize("optimizer", NAMES)
def test_the_loss_falls(optimizer: str) -> None:
    config = tiny("plain", optimizer=optimizer, images=400, learning_rate=5e-3)
    digits = load_dataset("mnist", "train")
    centres = replace(digits, images=digits.images[:, :, 8:20, 8:20])
    state = TrainState(config, centres, CPU)
    losses = []
    for _ in range(50):
        state.step()
        losses += [reading.loss for reading in state.read()]
    assert sum(losses[-10:]) < sum(losses[:10]) - 3
    v = state.model.head.weight_v.detach()
    if optimizer == "muon":
        torch.testing.assert_close(v.flatten(1).norm(dim=1), torch.ones(len(v)))


def test_the_state_of_the_other_optimizer_is_refused() -> None:
    for names in itertools.permutations(NAMES):
        one, other = (
            TrainState(tiny("plain", optimizer=name), random_dataset(12), CPU) for name in names
        )
        for state in (one, other):
            state.step()
        refuses(r"x holds the state of another .* differ", one.restore, other.tensors(), 8, 1, "x")
