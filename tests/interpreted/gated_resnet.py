"""Laws of the gated block's Triton kernels, under the interpreter (see test_interpreter.py)."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import Tensor

from dsmooth.functional import Impl, Shift, use_impl
from dsmooth.functional.dropout import dropout_factors, keep_from
from dsmooth.functional.gated_resnet_cudnn import gated_resnet_cudnn
from dsmooth.functional.gated_resnet_triton import backward_op, forward_op
from dsmooth.kernels import gated_resnet as kernels
from dsmooth.kernels.expand import expand, expand_plan
from dsmooth.kernels.geometry import Dropout, Rows, Taps
from dsmooth.nn.layers import GatedResnet
from tests.helpers import interpreter_speed  # noqa: F401 - for its effect
from tests.helpers.gated_cases import (
    EPS,
    INTERPRETED,
    Case,
    assert_as_good,
    each_dtype,
    each_impl,
    make_case,
)
from tests.test_gated_resnet import (  # noqa: F401 - laws of every implementation
    test_a_gradient_does_not_depend_on_which_others_are_wanted,
    test_a_second_derivative_is_refused,
    test_an_empty_batch_gives_empty_outputs_and_zero_gradients,
    test_no_output_sees_a_later_pixel,
    test_nothing_is_written_or_read_beside_a_tensor,
    test_strides_do_not_matter,
    test_the_memory_order_of_parameters_does_not_matter,
)

assert INTERPRETED, "run with TRITON_INTERPRET=1"

Shapes = tuple[Shift, tuple[int, int, int], int, tuple[int, ...], float]
CASES: list[Shapes] = [
    ("down", (1, 1, 1), 1, (), 0.0),
    ("down", (1, 5, 7), 5, (5, 3), 0.5),
    ("down_right", (2, 5, 7), 4, (4,), 0.5),
    ("none", (1, 3, 33), 5, (), 0.3),
    ("down_right", (1, 1, 3), 40, (40, 40), 0.5),
]
pytestmark = pytest.mark.grid
full = partial(pytest.param, marks=pytest.mark.full)


def as_good_as_eager(
    case: Case, dtype: torch.dtype, keep_gates: bool = False, impl: Impl = "triton"
) -> None:
    exact = case.run("reference", torch.float64)
    eager = case.run("reference", dtype)
    got = case.run(impl, dtype, keep_gates=keep_gates)
    assert_as_good(got, eager, exact, EPS[dtype])


@each_impl
@each_dtype
@pytest.mark.parametrize("shapes", CASES)
def test_as_good_as_eager(shapes: Shapes, dtype: torch.dtype, impl: Impl) -> None:
    *shape, dropout = shapes
    dropped = dropout > 0
    case = make_case(*shape, dropout, dtype, gains=dropped, image_bias=dropped)
    as_good_as_eager(case, dtype, impl=impl)


@pytest.mark.parametrize("dtype", [full(torch.float64), full(torch.float32), torch.float16])
def test_as_good_as_eager_with_what_is_kept_of_the_gates(dtype: torch.dtype) -> None:
    *shape, dropout = CASES[1]
    case = make_case(*shape, dropout, dtype, gains=True, image_bias=True)
    as_good_as_eager(case, dtype, keep_gates=True)


@pytest.mark.full
def test_as_good_as_eager_at_160_channels() -> None:
    case = make_case("down_right", (1, 1, 2), 160, (160,), 0.5, torch.float16, gains=True)
    as_good_as_eager(case, torch.float16)


# ---- dropout ----------------------------------------------------------------------------------


@pytest.mark.parametrize("filters", [full(1), full(4), 6, full(40)])
def test_what_is_kept_is_what_the_reference_keeps(filters: int) -> None:
    """The bits, and the elements that they keep; in margins and between the pixels, zeros."""
    shape = torch.Size((2, 2 * filters, 3, 5))
    h = torch.full((2, filters, 3, 5), -1.0).to(memory_format=torch.channels_last)
    case, rows = make_case(filters=1), Rows.of(h.shape, Taps(2, 3, 1, 1))
    cases = ((0, 0, 0.5, 0), (0x1234_5678_9ABC_DEF0, 61, 0.1, 3), (2**63 - 2, 1, 0.9, 2**31 - 1))
    for seed, layer, p, first_image in cases:
        seed_tensor = torch.tensor(seed)
        dropout = Dropout(layer, keep_from(p), 1 / (1 - p), first_image)
        d_gates, dh = rows.empty(h, 2 * filters), rows.empty(h, filters)
        plan = expand_plan(rows, filters, (), dropout, inputs=False, backward=True)
        given = case.operands(torch.float32)._replace(x=h, seed=seed_tensor)
        room, bits = expand(plan, given, h, d_gates=d_gates, dh=dh)
        assert bits is not None
        e, kept = rows.first(room), rows.first(bits)
        expected = dropout_factors(shape, p, seed_tensor, layer, first_image) > 0
        bits = torch.cat([kept & 1, kept >> 1], dim=-1)
        assert torch.equal(pixels(bits, rows) > 0, expected)
        assert torch.equal(pixels(e, rows) != 0, expected)
        assert e.count_nonzero() == expected.count_nonzero()
        for room in (d_gates, dh):
            margins = room[:, : rows.margin], room[:, rows.margin + rows.total :]
            assert not any(margin.count_nonzero() for margin in margins)


def pixels(room: Tensor, rows: Rows) -> Tensor:
    """The pixels (B, C, H, W) of rows (count + margin, C)."""
    lines = rows.batch * (rows.height + rows.above)
    image = room[: lines * rows.pitch].view(rows.batch, -1, rows.pitch, room.shape[1])
    return image[:, rows.above :, rows.before :].permute(0, 3, 1, 2)


# ---- the op as torch sees it ------------------------------------------------------------------


@pytest.mark.full
def test_opcheck() -> None:
    case = make_case("down_right", (2, 1, 3), 2, (2,), 0.5, gains=True, image_bias=True)
    given, settings = case.operands(torch.float32), case.settings
    _, *saved = forward_op(*given, *settings, True, True)
    grad_y = case.grad_y.float()
    for needs in ((True, True, True), (False, True, False)):
        torch.library.opcheck(backward_op, (grad_y, *saved, *given, *settings, True, *needs))
    torch.library.opcheck(forward_op, (*given, *settings, True, False))


def test_frozen_weights_and_images_between_torchs_convolutions() -> None:
    """Gradients of some leaves are those of all, and a second derivative is refused."""
    case = make_case("down", (1, 3, 4), 4, (4,), 0.5, gains=True)
    given, exact = case.operands(torch.float64), case.run("reference", torch.float64)
    names = ("x", "skip", "conv_in", "gain_nin")
    for wanted in (["x"], ["skip"], ["conv_in", "gain_nin"]):
        for name in names:
            getattr(given, name).requires_grad_(name in wanted)
        y = gated_resnet_cudnn(given, case.settings)
        leaves = [getattr(given, name) for name in wanted]
        grads = torch.autograd.grad((y * case.grad_y).sum(), leaves, create_graph=True)
        for name, grad in zip(wanted, grads, strict=True):
            torch.testing.assert_close(grad, exact[name])
    with pytest.raises(RuntimeError, match="once_differentiable"):
        grads[0].sum().backward()


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
