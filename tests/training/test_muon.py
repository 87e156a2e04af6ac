"""What Muon does to kernels, and what it keeps of them in a checkpoint."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from dsmooth.nn.layers import WeightNormConv
from dsmooth.training.optimizers import (
    MOMENTUM,
    FlatMuon,
    FlatParameters,
    Group,
    kernels_of,
    padded_together,
    polar_operator,
    wide,
)
from dsmooth.training.step import kernel_rate
from tests.helpers.tiny_runs import tiny


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
    """Whatever the size of a gradient."""
    for scale in (1, 1e-6, 1e6):
        x = wide(scale * random_matrices(3, *shape, smallest=0.005))
        factor = polar_operator(x @ x.mT) @ x
        u, _, vh = torch.linalg.svd(x, full_matrices=False)
        values = u.mT @ factor @ vh.mT
        diagonal = values.diagonal(dim1=1, dim2=2)
        assert (values - torch.diag_embed(diagonal)).abs().max() < 1e-3
        assert 0.87 < diagonal.min() <= diagonal.max() < 1.13
    assert polar_operator(torch.zeros(2, 3, 3)).isfinite().all()


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


def muon_of(*layers: WeightNormConv) -> FlatMuon:
    """An optimiser of the kernels of some layers, whose gradients it takes."""
    kernels = kernels_of(nn.ModuleList(layers))
    flat = FlatParameters({name: conv.weight_v for name, conv in kernels.items()})
    flat.gradient.normal_(generator=torch.Generator().manual_seed(3))
    return FlatMuon(kernels, flat)


def filters(v: Tensor, transposed: bool) -> Tensor:
    """A kernel with one row per filter: (D, kh kw C)."""
    return (v.permute(1, 2, 3, 0) if transposed else v.permute(0, 2, 3, 1)).flatten(1)


SHAPES = [(4, 6, (2, 3), False), (4, 6, (2, 3), False), (6, 4, (2, 2), True), (2, 9, (1, 1), False)]


def test_a_frozen_kernel_keeps_still() -> None:
    layers = convolutions(SHAPES[:2])
    layers[1].requires_grad_(False)
    before = layers[1].weight_v.clone()
    muon = muon_of(*layers)
    muon.step(0.1)
    assert torch.equal(layers[1].weight_v, before)
    assert set(muon.flat.parameters) == {"0.weight_v"}


@pytest.mark.quick
def test_a_step_has_the_momentum_of_nesterov() -> None:
    """Of each kernel by itself, of one shape too. The angle is the root mean square of those of the
    filters, which have length one."""
    layers = convolutions(SHAPES)
    weights = [layer.affine()[0].detach() for layer in layers]
    muon, averages = muon_of(*layers), [torch.zeros(1)] * len(layers)
    # The functions are the same.
    torch.testing.assert_close([layer.affine()[0].detach() for layer in layers], weights)
    for _ in range(2):
        expected = []
        for number, layer in enumerate(layers):
            v = filters(layer.weight_v.detach().clone(), layer.transposed)
            layer.weight_v.grad = torch.randn_like(layer.weight_v)
            gradient = filters(layer.weight_v.grad, layer.transposed).clone()
            averages[number] = torch.lerp(gradient, averages[number], MOMENTUM)
            x = wide(torch.lerp(gradient, averages[number], MOMENTUM)[None])
            turned = (polar_operator(x @ x.mT) @ x)[0]
            turned = turned.mT if len(turned) < len(v) else turned
            v -= 0.1 * max(1.0, v.shape[0] / v.shape[1]) ** 0.5 * turned
            expected.append(v / v.norm(dim=1, keepdim=True))
        muon.flat.gather_gradients()
        muon.step(torch.tensor(0.1))
        kernels = [filters(layer.weight_v.detach(), layer.transposed) for layer in layers]
        torch.testing.assert_close(kernels, expected, rtol=0, atol=2e-6)


def test_gradients_are_gathered_whatever_their_memory_order() -> None:
    layers = convolutions(SHAPES)
    muon = muon_of(*layers)
    factors = {f"{i}.weight_v": torch.randn_like(c.weight_v) for i, c in enumerate(layers)}
    for number, factor in enumerate(factors.values()):
        layers[number].weight_v.grad = factor.contiguous() if number % 2 else factor
    for name, view in muon.flat.views(muon.flat.gather_gradients()).items():
        assert torch.equal(view, factors[name])


def test_gram_matrices_of_few_kernels_are_padded_to_the_next_size() -> None:
    def sizes(*groups: tuple[int, int]) -> list[list[int]]:
        kernels = [Group(d, 1000, False, count, 0) for d, count in groups]
        return [[group.n_filters for group in part] for part in padded_together(kernels)]

    assert sizes((40, 90), (80, 60), (30, 1), (4, 1)) == [[4, 30, 40], [80]]
    assert sizes((160, 90), (320, 60), (100, 1)) == [[100], [160], [320]]


def test_the_angle_follows_from_the_number_of_steps() -> None:
    config = tiny(optimizer="muon", images=8000, batch_size=8)
    assert kernel_rate(replace(config, kernel_rate=0.03)) == 0.03
    quarter = kernel_rate(replace(config, images=32_000))
    assert kernel_rate(config) == pytest.approx(2 * quarter)
    assert kernel_rate(replace(config, images=8)) == kernel_rate(replace(config, images=80))
