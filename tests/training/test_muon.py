"""What Muon does to kernels, and what it keeps of them in a checkpoint."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from dsmooth.nn.layers import WeightNormConv
from dsmooth.training.flat import FlatParameters
from dsmooth.training.optimizers import (
    MOMENTUM,
    FlatMuon,
    Group,
    Shape,
    filters,
    gram_sizes,
    kernels_of,
    polar_operator,
    wide,
)
from dsmooth.training.step import TrainState, kernel_rate
from tests.helpers.data_makers import random_dataset
from tests.helpers.tiny_runs import tiny

CPU = torch.device("cpu")


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
    x = wide(random_matrices(3, *shape, smallest=0.005))
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
    return FlatMuon(
        kernels, FlatParameters({name: conv.weight_v for name, conv in kernels.items()})
    )


SHAPES = [(4, 6, (2, 3), False), (4, 6, (2, 3), False), (6, 4, (2, 2), True), (2, 9, (1, 1), False)]


def stepped(
    layers: list[WeightNormConv], together: bool, steps: int = 2, scale: float = 1.0
) -> list[Tensor]:
    """Kernels after some steps of one gradient, all by one Muon or each by its own."""
    groups = [layers] if together else [[layer] for layer in layers]
    optimizers = [muon_of(*group) for group in groups]
    gradients = [scale * layer.weight_v.grad for layer in layers]
    for _ in range(steps):
        for layer, gradient in zip(layers, gradients, strict=True):
            layer.weight_v.grad = gradient.clone()
        for optimizer in optimizers:
            optimizer.flat.gather_gradients()
            optimizer.step(torch.tensor(0.1))
    return [layer.weight_v.detach() for layer in layers]


@pytest.mark.quick
def test_kernels_of_one_shape_step_independently_of_each_other_and_of_gradient_size() -> None:
    expected = stepped(convolutions(SHAPES), together=False)
    for scale in (1.0, 1e-6, 1e6):
        for v, other in zip(
            stepped(convolutions(SHAPES), together=True, scale=scale), expected, strict=True
        ):
            torch.testing.assert_close(v, other, rtol=0, atol=2e-6)


def test_a_frozen_kernel_keeps_still() -> None:
    layers = convolutions(SHAPES[:2])
    layers[1].requires_grad_(False)
    before = layers[1].weight_v.clone()
    muon = muon_of(*layers)
    muon.flat.gather_gradients()
    muon.step(0.1)
    assert torch.equal(layers[1].weight_v, before)
    assert set(muon.kernels) == {"0.weight_v"}


@pytest.mark.parametrize("shape", SHAPES[1:])
def test_a_step_has_the_momentum_of_nesterov(shape) -> None:
    """The angle is the root mean square of those of the filters, which have length one."""
    (layer,) = convolutions([shape])
    weight = layer.affine()[0].detach()
    muon, average = muon_of(layer), torch.zeros(1)
    torch.testing.assert_close(layer.affine()[0], weight)  # the function is the same
    for _ in range(2):
        v = filters(layer.weight_v.detach().clone(), layer.transposed).flatten(1)
        layer.weight_v.grad = torch.randn_like(layer.weight_v)
        gradient = filters(layer.weight_v.grad, layer.transposed).flatten(1).clone()
        average = torch.lerp(gradient, average, MOMENTUM)
        x = wide(torch.lerp(gradient, average, MOMENTUM)[None])
        turned = (polar_operator(x @ x.mT) @ x)[0]
        turned = turned.mT if len(turned) < len(v) else turned
        v -= 0.1 * max(1.0, v.shape[0] / v.shape[1]) ** 0.5 * turned
        muon.flat.gather_gradients()
        muon.step(torch.tensor(0.1))
        new = filters(layer.weight_v.detach(), layer.transposed).flatten(1)
        torch.testing.assert_close(new, v / v.norm(dim=1, keepdim=True), rtol=0, atol=2e-6)


def test_gradients_are_gathered_whatever_their_memory_order() -> None:
    layers = convolutions(SHAPES)
    muon = muon_of(*layers)
    expected = {name: torch.randn_like(conv.weight_v) for name, conv in muon.kernels.items()}
    for number, (name, conv) in enumerate(muon.kernels.items()):
        conv.weight_v.grad = expected[name].contiguous() if number % 2 else expected[name].clone()
    views = muon.flat.views(muon.flat.gather_gradients())
    for name, conv in muon.kernels.items():
        assert torch.equal(views[name], expected[name])
        assert conv.weight_v.grad is None


def test_a_checkpoint_has_a_row_of_moments_for_every_filter() -> None:
    """Transposed or not: (D, kh kw C), in the order of a kernel (D, kh, kw, C); and is restored."""
    config = tiny("denoiser", optimizer="muon")
    one, other = (TrainState(config, random_dataset(12), CPU) for _ in range(2))
    one.step()
    tensors = {name: tensor.clone() for name, tensor in one.tensors().items()}
    averages = one.optimizer.flat.views(one.optimizer.muon.average)
    for name, conv in one.optimizer.muon.kernels.items():
        stored = tensors[f"muon.{name.removesuffix('.weight_v')}"]
        rows = filters(averages[name], conv.transposed)
        assert torch.equal(stored, rows.flatten(1))
    assert sum(name.startswith("muon.") for name in tensors) == len(one.optimizer.muon.kernels)
    other.restore(tensors, one.images_seen, one.steps, "x")
    for state in (one, other):
        state.step()
    for name, tensor in one.tensors().items():
        assert torch.equal(tensor, other.tensors()[name]), name


def test_gram_matrices_of_few_kernels_are_padded_to_the_next_size() -> None:
    def groups(*sizes: tuple[int, int]) -> list[Group]:
        return [Group(Shape(d, 1000, False), count, 0) for d, count in sizes]

    assert gram_sizes(groups((40, 90), (80, 60), (30, 1), (4, 1))) == {
        4: 40, 30: 40, 40: 40, 80: 80
    }  # fmt: skip
    assert gram_sizes(groups((160, 90), (320, 60), (100, 1))) == {100: 100, 160: 160, 320: 320}
    assert gram_sizes([]) == {}


def test_the_angle_follows_from_the_number_of_steps() -> None:
    config = tiny(optimizer="muon", images=8000, batch_size=8)
    assert kernel_rate(replace(config, kernel_rate=0.03)) == 0.03
    quarter = kernel_rate(replace(config, images=32_000))
    assert kernel_rate(config) == pytest.approx(2 * quarter)
    assert kernel_rate(replace(config, images=8)) == kernel_rate(replace(config, images=80))
