"""Laws of the gated block's Triton kernels, under the interpreter (see test_interpreter.py)."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import Tensor

from dsmooth.functional import concat_elu, use_impl
from dsmooth.functional.gated_resnet import dropout_factors
from dsmooth.functional.gated_resnet_operands import GatedResnetCall
from dsmooth.kernels import gated_resnet as kernels
from dsmooth.kernels import tilings
from dsmooth.kernels.expand import blocks_of, expand
from dsmooth.kernels.geometry import Dropout, PaddedImages, Taps, Tensors
from dsmooth.nn.layers import GatedResnet
from tests.functional.test_gated_resnet import (  # noqa: F401 - invariants of every implementation
    test_as_good_as_eager,
    test_no_output_sees_a_later_pixel,
)
from tests.helpers.gated_cases import INTERPRETED, make_case
from tests.helpers.triton_canaries import guarded, guarded_memory

assert INTERPRETED, "run with TRITON_INTERPRET=1"

full = partial(pytest.param, marks=pytest.mark.full)
pytestmark = pytest.mark.grid


@pytest.mark.parametrize("filters", [full(1), full(4), 6, full(40)])
def test_what_is_kept_is_what_the_reference_keeps(filters: int) -> None:
    """The bits, and the elements that they keep; in margins and between the pixels, zeros."""
    shape = torch.Size((2, 2 * filters, 3, 5))
    h = torch.full((2, filters, 3, 5), -1.0).to(memory_format=torch.channels_last)
    rows = PaddedImages.of(h.shape, Taps(2, 3, 1, 1))
    cases = ((0, 0, 0.5, 0), (0x1234_5678_9ABC_DEF0, 61, 0.1, 3), (2**63 - 2, 1, 0.9, 2**31 - 1))
    for seed, layer, p, first_image in cases:
        seed_tensor = torch.tensor(seed)
        options = GatedResnetCall("down", p, layer, first_image)
        keeping = options.keep_from, options.scale
        d_gates, dh = rows.empty(h, 2 * filters), rows.empty(h, filters)
        gates = torch.randn(2, 2 * filters, 3, 5).to(memory_format=torch.channels_last)
        sums = torch.empty(blocks_of(rows), 2 * filters)
        (e,), (kept,) = expand(
            Tensors((h,), (), None), rows, h,
            Dropout(seed_tensor, layer, first_image, *keeping), inputs=False,
            gates_ptr=gates, dy_ptr=h, d_gates_ptr=d_gates, dh_ptr=dh, sums_ptr=sums,
        )  # fmt: skip
        expected = dropout_factors(shape, options, seed_tensor) > 0
        bits = torch.cat([kept & 1, kept >> 1], dim=-1)
        assert torch.equal(pixels(bits, rows) > 0, expected)
        assert torch.equal(pixels(e, rows) != 0, expected)
        assert e.count_nonzero() == expected.count_nonzero()
        for buffer in (d_gates, dh):
            before = buffer._base[0, : -buffer.shape[1]]
            for margin in (before[-rows.margin :], buffer[0, rows.total :]):
                assert margin.count_nonzero() == 0


def pixels(buffer: Tensor, rows: PaddedImages) -> Tensor:
    """The pixels (B, C, H, W) of rows (count + margin, C)."""
    lines = rows.batch * (rows.height + rows.above)
    image = buffer[: lines * rows.pitch].view(rows.batch, -1, rows.pitch, buffer.shape[1])
    return image[:, rows.above :, rows.before :].permute(0, 3, 1, 2)


def test_the_last_split_of_the_rows_has_the_blocks_that_remain(monkeypatch) -> None:
    case = make_case("down", (1, 2, 3), 4)
    whole = case.run("triton", torch.float64)
    monkeypatch.setattr(tilings, "PROCESSORS", 12)  # 4 tiles: 3 splits of 3, 3 and 2 blocks
    with guarded_memory():
        split = case.run("triton", torch.float64, guarded)
    for name, value in whole.items():
        torch.testing.assert_close(split[name], value, msg=name)


def test_elu_keeps_its_digits_near_0() -> None:
    x = torch.logspace(-30, 1, 128).view(2, 1, 8, 8)
    x[1] *= -1
    rows = PaddedImages.of(x.shape, Taps(1, 1, 0, 0))
    e, _ = expand(Tensors((x,), (), None), rows, x, Dropout(None, 0, 0, 0, 1.0))
    got = pixels(e[0], rows)
    torch.testing.assert_close(got.double(), concat_elu(x.double()), rtol=1e-6, atol=0)


def test_only_by_name_and_not_in_bfloat16() -> None:
    """On the CPU "auto" stays with the extension or PyTorch, even where kernels are interpreted."""
    block = GatedResnet(1, (2, 2), shift="down_right")
    x = torch.randn(1, 1, 1, 1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kernels, "forward", None)
        block(x)
        with use_impl("triton"), pytest.raises(TypeError):
            block(x)
    with (
        use_impl("triton"),
        torch.autocast("cpu", torch.bfloat16),
        pytest.raises(RuntimeError, match=r"impl='triton': .* multiplies bfloat16"),
    ):
        block(x)
