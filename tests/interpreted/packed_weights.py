"""All weights of a network packed at once, under Triton's interpreter (see test_interpreter.py)."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from dsmooth.functional import BlockWeights, pack_weights, use_impl
from dsmooth.functional.packed_weights import pack_op
from dsmooth.kernels.geometry import packed_starts
from dsmooth.kernels.weights import _tables, pack, pack_convolutions
from dsmooth.nn.layers import (
    GatedResnet,
    ShiftedConv2d,
    ShiftedConvTranspose2d,
    convolve,
    pack_layers,
)
from tests.helpers import interpreter_speed  # noqa: F401 - for its effect
from tests.helpers.triton_canaries import guarded_memory


def layers(*skips: int, filters: int = 5) -> list[GatedResnet]:
    torch.manual_seed(0)
    found = []
    for i, (skip, kernel) in enumerate(zip(skips, ((2, 3), (2, 2), (2, 2)), strict=False)):
        shift: Any = "down" if kernel == (2, 3) else "down_right"
        layer = GatedResnet(filters, kernel, shift=shift, skip_channels=skip, dropout=0.5, layer=i)
        for parameter in layer.parameters():
            torch.nn.init.normal_(parameter)
        found.append(layer)
    found[-1].to(memory_format=torch.channels_last)
    return found


def convolutions() -> list[ShiftedConv2d | ShiftedConvTranspose2d]:
    torch.manual_seed(1)
    down = [ShiftedConv2d(5, 3, size, shift="down_right", stride=2) for size in ((2, 3), (2, 2))]
    up = [ShiftedConvTranspose2d(5, 3, size, shift="down_right") for size in ((2, 3), (2, 2))]
    found = [*down, *up]
    for layer in found[1::2]:
        layer.to(memory_format=torch.channels_last)
    for parameter in (p for layer in found for p in layer.parameters()):
        torch.nn.init.normal_(parameter)
    return found


def alone(block: BlockWeights, dtype: torch.dtype, adjoint: bool) -> Tensor:
    weights, gains = list(block.weights), list(block.gains)
    if len(weights) == 1:
        both = pack_convolutions(weights, gains, dtype, transposed=block.transposed)
        return both[: block.packed_size(adjoint)]
    return pack(weights, gains, block.skip_channels, dtype, adjoint=adjoint)


def test_they_are_those_that_each_block_packs_alone() -> None:
    for adjoint, dtype in ((True, torch.float32), (False, torch.float16)):
        blocks = [layer.block_weights() for layer in [*layers(0, 5, 10), *convolutions()]]
        x = torch.empty(0, 5, 1, 1, dtype=dtype)
        half = dtype == torch.float16
        with (
            torch.set_grad_enabled(adjoint),
            torch.autocast("cpu", dtype if half else None, half),
            use_impl("triton"),
            guarded_memory() as allocated,
        ):
            found = pack_weights(blocks, x)
        assert len(allocated) == 1
        assert found is not None
        for got, block in zip(found, blocks, strict=True):
            assert got.dtype == dtype
            assert got.data_ptr() % 16 == allocated[0].data_ptr() % 16
            assert torch.equal(got, alone(block, dtype, adjoint))


def test_they_follow_weights_that_change_and_move() -> None:
    blocks = [layer.block_weights() for layer in layers(0, 5)]
    x = torch.empty(0, 5, 1, 1)
    weight = blocks[1].weights[2]

    def check() -> None:
        found = pack_weights(blocks, x)
        assert found is not None
        for got, block in zip(found, blocks, strict=True):
            assert torch.equal(got, alone(block, torch.float32, True))

    with use_impl("triton"):
        check()
        with torch.no_grad():
            weight.mul_(2)
        check()
        weight.data = weight.data.clone()
        check()
        blocks[0].weights[0].data = blocks[0].weights[0].to(memory_format=torch.channels_last)
        check()


def test_a_table_lives_as_long_as_the_weights() -> None:
    x = torch.empty(0, 5, 1, 1)
    with use_impl("triton"):
        kept = layers(0)
        pack_layers(kept, x)
        before = dict(_tables)
        for _ in range(3):
            pack_layers(layers(0), x)
            pack_layers(kept, x)
    place = x.device, kept[0].conv_in.weight_v.data_ptr(), torch.float32, True
    assert _tables[place].tensor is before[place].tensor
    assert len(_tables) <= len(before) + 1


def test_a_block_computes_the_same_with_them() -> None:
    (layer,) = layers(10)
    x, first, second = (torch.randn(2, 5, 3, 4) for _ in range(3))
    seed = torch.tensor(7)
    results = []
    with use_impl("triton"):
        for packed in (None, *pack_layers([layer], x)):
            image = x.clone().requires_grad_()
            y = layer(image, (first, second), seed=seed, packed=packed)
            inputs = [image, *layer.parameters()]
            results.append([y, *torch.autograd.grad(y.square().sum(), inputs)])
    for got, expected in zip(results[1], results[0], strict=True):
        assert torch.equal(got, expected)


@pytest.mark.parametrize("pair", [slice(2), slice(2, 4)], ids=["down", "up"])
def test_convolutions_compute_the_same_with_them(pair: slice) -> None:
    convs = convolutions()[pair]
    xs = [torch.randn(2, 5, 4, 6, requires_grad=True) for _ in convs]
    leaves = [*xs, *(p for conv in convs for p in conv.parameters())]
    none: list[Tensor | None] = [None] * len(convs)
    results = []
    with use_impl("triton"):
        for packed in (none, pack_layers(convs, xs[0])):
            ys = convolve(convs, xs, iter(packed))
            loss = sum(y.square().sum() for y in ys)
            results.append([*ys, *torch.autograd.grad(loss, leaves)])
        with torch.no_grad():
            results.append([*convolve(convs, xs, iter(pack_layers(convs, xs[0])))])
    for got, expected in zip(results[1], results[0], strict=True):
        assert torch.equal(got, expected)
    assert all(map(torch.equal, results[2], results[0]))


def test_wrong_ones_are_refused() -> None:
    layer = layers(10)[0]
    x = torch.randn(1, 5, 2, 2)
    with use_impl("triton"):
        (packed,) = pack_layers([layer], x)
        assert packed is not None
        with pytest.raises(ValueError, match=r"packed must have shape"):
            layer(x, (x, x), packed=packed[1:])
        layer = layers(8)[0]
        with pytest.raises(ValueError, match="first skip of a multiple of 5 channels, got 3"):
            layer(x, (x[:, :3], x), packed=pack_layers([layer], x)[0])


def test_nothing_is_packed_where_it_serves_nobody() -> None:
    (layer,) = layers(0)
    x = torch.randn(1, 5, 2, 2)
    assert pack_layers([layer], x) == [None]
    with use_impl("triton"):
        assert pack_layers([layer], x)[0] is not None
        # A model in half precision: each block casts its weights first.
        assert pack_layers([GatedResnet(5, (2, 3), shift="down").half()], x.half()) == [None]
        # As data-dependent initialisation does, a hook may change a weight on the way.
        layer.register_forward_pre_hook(lambda *_: None)
        assert pack_layers([layer], x) == [None]


def test_opcheck() -> None:
    up = ShiftedConvTranspose2d(4, 4, (2, 3), shift="down")
    # Of 4 filters, so that there is nothing between the blocks: that is never written.
    blocks = [layer.block_weights() for layer in [*layers(0, 4, filters=4), up]]
    weights = [weight.detach() for block in blocks for weight in block.weights]
    gains = [gain.detach() for block in blocks for gain in block.gains]
    given = (weights, gains, [2, 3, -1], torch.float32)
    for adjoint in (False, True):
        torch.library.opcheck(pack_op, (*given, adjoint))
        assert len(pack_op(*given, adjoint)) == packed_starts(blocks, adjoint)[-1]
