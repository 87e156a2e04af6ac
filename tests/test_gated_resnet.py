"""Laws of the gated block: the native op against the reference, and what both promise."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from dsmooth import _extension
from dsmooth.functional import Shift, gated_resnet, use_impl
from dsmooth.functional.gated_resnet import dropout_factors
from dsmooth.functional.gated_resnet_native import backward_op, forward_op, gated_resnet_native
from dsmooth.functional.gated_resnet_operands import GRADIENTS, Operands
from dsmooth.functional.shifted_conv import padding_of
from dsmooth.nn.layers import GatedResnet
from tests.helpers.gated_cases import (
    EPS,
    INTERPRETED,
    KERNELS,
    STRIDES,
    assert_as_good,
    each_dtype,
    each_fast_impl,
    each_impl,
    each_shift,
    leaves_of,
    make_case,
    needs_extension,
)

INSTRUCTION_SETS = _extension.instruction_sets()
SHAPES = [
    ((1, 1, 1), 1, ()),
    ((2, 5, 7), 5, (5,)),
    ((1, 7, 4), 40, (40, 40)),
    ((3, 1, 9), 16, (3, 2)),
    ((2, 6, 1), 24, ()),
    ((2, 4, 30), 20, (20,)),
]


class Guarded:
    """A tensor like another one, of NaN, between canaries."""

    def __init__(self, like: Tensor, canary: int = 64) -> None:
        self.canary = canary
        self.whole = torch.full((like.numel() + 2 * canary,), 7.0, dtype=like.dtype)
        middle = self.whole[canary:-canary]
        middle[:] = float("nan")
        self.inside = middle.as_strided(like.shape, like.stride(), middle.storage_offset())

    def edges(self) -> tuple[Tensor, Tensor]:
        return self.whole[: self.canary], self.whole[-self.canary :]


@pytest.mark.quick
@needs_extension
@each_dtype
@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize(("size", "filters", "skips"), SHAPES)
@each_shift
def test_native_is_as_good_as_eager(
    shift: Shift,
    size: tuple[int, int, int],
    filters: int,
    skips: tuple[int, ...],
    dropout: float,
    dtype: torch.dtype,
) -> None:
    dropped = dropout > 0
    case = make_case(shift, size, filters, skips, dropout, dtype, gains=dropped, image_bias=dropped)
    exact = case.run("reference", torch.float64)
    eager = case.run("reference", dtype)
    assert_as_good(case.run("native", dtype), eager, exact, EPS[dtype])


@pytest.mark.quick
@needs_extension
@each_dtype
@pytest.mark.parametrize("instruction_set", INSTRUCTION_SETS)
@each_shift
def test_every_instruction_set_computes_the_block(
    shift: Shift, instruction_set: str, dtype: torch.dtype
) -> None:
    case = make_case(shift, (2, 5, 13), 20, (20, 3), 0.5, dtype)
    exact = case.run("reference", torch.float64)
    eager = case.run("reference", dtype)
    given = case.operands(dtype)
    leaves = [t.requires_grad_() for t in leaves_of(given)]
    y = gated_resnet_native(given, case.settings, instruction_set)
    names = ["x", "skip0", "skip1", "conv_in", "bias_in", "conv_out", "bias_out", "nin", "bias_nin"]
    grads = torch.autograd.grad(y, leaves, case.grad_y.to(dtype))
    got = {"y": y.detach(), **dict(zip(names, grads, strict=True))}
    assert_as_good(got, eager, exact, EPS[dtype])


@pytest.mark.quick
@needs_extension
@settings(max_examples=30, deadline=None)
@given(
    size=st.tuples(st.integers(1, 3), st.integers(1, 9), st.integers(1, 33)),
    filters=st.integers(1, 36),
    skips=st.lists(st.integers(1, 9), max_size=2),
    shift=st.sampled_from(list(KERNELS)),
    dropout=st.sampled_from([0.0, 0.25, 0.5, 0.9]),
    gains=st.booleans(),
    image_bias=st.booleans(),
    seed=st.integers(0, 99),
)
def test_float64_equals_the_reference(
    size: tuple[int, int, int],
    filters: int,
    skips: list[int],
    shift: Shift,
    dropout: float,
    gains: bool,
    image_bias: bool,
    seed: int,
) -> None:
    options = {"seed": seed, "gains": gains, "image_bias": image_bias}
    case = make_case(shift, size, filters, tuple(skips), dropout, **options)
    native, reference = (case.run(impl, torch.float64) for impl in ("native", "reference"))
    for name, expected in reference.items():
        torch.testing.assert_close(native[name], expected, rtol=1e-12, atol=1e-12)


@each_fast_impl
@each_dtype
def test_an_empty_batch_gives_empty_outputs_and_zero_gradients(
    dtype: torch.dtype, impl: str
) -> None:
    case = make_case(size=(0, 4, 4), skip_channels=(5,), image_bias=True)
    for name, value in case.run(impl, dtype).items():
        assert torch.equal(value, torch.zeros_like(value)), name


@needs_extension
@pytest.mark.parametrize("last", [False, True])
def test_biases_and_gains_may_be_strided(last: bool) -> None:
    case = make_case("down", skip_channels=(5,), gains=True)
    given = case.operands(torch.float64)
    if last:
        given = kernels_last(given)

    def run(given: Operands) -> list[Tensor]:
        leaves = [t.requires_grad_() for t in leaves_of(given)]
        y = gated_resnet_native(given, case.settings)
        return [y.detach(), *torch.autograd.grad(y.square().sum(), leaves)]

    def strided(v: Tensor | None) -> Tensor | None:
        return v if v is None or v.ndim == 4 else torch.stack([v, v + 1], dim=-1)[:, 0].detach()

    expected = run(given)
    for a, b in zip(run(Operands._make(map(strided, given))), expected, strict=True):
        assert torch.equal(a, b)


def kernels_last(given: Operands) -> Operands:
    """The operands with weights in channels_last."""
    weights = {
        name: getattr(given, name).to(memory_format=torch.channels_last)
        for name in ("conv_in", "conv_out", "nin_skip")
    }
    return given._replace(**weights)


@needs_extension
def test_the_weights_memory_order_does_not_matter() -> None:
    case = make_case("down", skip_channels=(5,), gains=True)
    given = case.operands(torch.float64)
    last = kernels_last(given)
    results = []
    for one in (given, last, given._replace(conv_in=last.conv_in)):
        leaves = [t.clone().requires_grad_() for t in one[3:] if t is not None]
        one = Operands._make((*one[:3], *leaves, *one[3 + len(leaves) :]))
        y = gated_resnet_native(one, case.settings)
        results.append([y.detach(), *torch.autograd.grad(y.sum(), leaves)])
    assert results[1][1].is_contiguous(memory_format=torch.channels_last)
    for result in results[1:]:
        for got, expected in zip(result, results[0], strict=True):
            torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.quick
@each_fast_impl
@each_dtype
@pytest.mark.parametrize("prepare", list(STRIDES.values()), ids=list(STRIDES))
def test_strides_do_not_matter(
    prepare: Callable[[Tensor], Tensor], dtype: torch.dtype, impl: str
) -> None:
    case = make_case(size=(2, 3, 4), filters=4, skip_channels=(4, 2))
    plain = case.run(impl, dtype, lambda t: t.to(memory_format=torch.channels_last))
    # Three of the four are other memory; the one that is the same proves only the repetition.
    for name, value in case.run(impl, dtype, prepare).items():
        assert torch.equal(value, plain[name]), name


@pytest.mark.quick
@needs_extension
@each_dtype
def test_results_do_not_depend_on_the_thread_count(dtype: torch.dtype) -> None:
    options = {"gains": True, "image_bias": True}
    case = make_case(size=(7, 9, 14), filters=12, skip_channels=(12,), dropout=0.5, **options)
    before = torch.get_num_threads()
    try:
        results = []
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            results.append(case.run("native", dtype))
    finally:
        torch.set_num_threads(before)
    for result in results[1:]:
        for name, value in result.items():
            assert torch.equal(value, results[0][name]), name


@pytest.mark.quick
@needs_extension
@each_dtype
@pytest.mark.parametrize("instruction_set", INSTRUCTION_SETS)
@each_shift
def test_nothing_is_written_beside_the_outputs(
    shift: Shift, instruction_set: str, dtype: torch.dtype
) -> None:
    """The extension on raw memory: every output lies between canaries and starts as NaN."""
    case = make_case(shift, (2, 3, 5), 5, (5, 2), 0.5, gains=True, image_bias=True)
    given = case.operands(dtype)
    grad_y = case.grad_y.to(dtype).to(memory_format=torch.channels_last)
    saved = forward_op(*given, *case.settings, True, instruction_set)
    outputs = dict(zip(("y", "h", "gates"), saved, strict=True))
    gradients = backward_op(grad_y, *saved[1:], *given, *case.settings, instruction_set)
    expected = {**outputs, **dict(zip(GRADIENTS, gradients, strict=True))}
    written = {name: Guarded(tensor) for name, tensor in expected.items()}

    inputs = given._asdict()
    kh, kw = KERNELS[shift]
    left, _, top, _ = padding_of(kh, kw, shift)
    settings = (top, left, 3, 0, 2**22, 2.0, 1, instruction_set)
    outputs = {name: written[name].inside for name in outputs}
    _extension.extension().gated_resnet_forward({**inputs, **outputs}, *settings)
    grads = {name: written[name].inside for name in GRADIENTS}
    saved_by_name = {"h": outputs["h"], "gates": outputs["gates"], "grad_y": grad_y}
    _extension.extension().gated_resnet_backward({**inputs, **saved_by_name, **grads}, *settings)
    for name, tensor in expected.items():
        assert torch.equal(written[name].inside, tensor), name
        for edge in written[name].edges():
            assert torch.equal(edge, torch.full_like(edge, 7.0)), name


@pytest.mark.quick
@each_impl
@each_dtype
@pytest.mark.parametrize("shift", ["down", "down_right"])
def test_no_output_sees_a_later_pixel(shift: Shift, dtype: torch.dtype, impl: str) -> None:
    """NaN in every pixel that a shift must not see changes no output, bitwise but for torch.

    Image i of the batch keeps the pixels that output i may see, and loses the others.
    """
    rows, cols = 3, 4
    case = make_case(shift, (1, rows, cols), 5, (5,), dtype=dtype)
    x, skip, _, *weights = case.operands(dtype)
    w = [weight.to(dtype) for weight in weights[:6]]
    outputs = list(itertools.product(range(rows), range(cols)))
    later = torch.zeros(len(outputs), 1, rows, cols, dtype=torch.bool)
    for lost, (r, c) in zip(later, outputs, strict=True):
        lost[:, r + 1 :] = True
        if shift == "down_right":
            lost[:, :, c + 1 :] = True

    def run(x: Tensor, skip: Tensor) -> Tensor:
        affine = (w[0], w[1]), (w[2], w[3])
        return gated_resnet(x, *affine, skip, (w[4], w[5]), shift=shift, impl=impl)

    plain = run(x, skip)
    images = (t.repeat(len(outputs), 1, 1, 1).masked_fill(later, torch.nan) for t in (x, skip))
    poisoned = run(*images)
    # Torch's own functions, and the interpreter's matmul, round by the lane of an element.
    by_lane = INTERPRETED or impl == "reference"
    band = 4 * EPS[dtype] * plain.abs().max().item() if by_lane else 0.0
    for i, (r, c) in enumerate(outputs):
        torch.testing.assert_close(poisoned[i, :, r, c], plain[0, :, r, c], rtol=0, atol=band)
    assert poisoned.isnan().any()


@each_impl
def test_nan_and_infinity_come_through(impl: str) -> None:
    case = make_case(size=(1, 3, 3))
    for bad in (torch.nan, torch.inf, -torch.inf):
        case.x[0, 2, 1, 1] = bad
        y = case.run(impl, torch.float32)["y"]
        assert not y[0, 2, 1, 1].isfinite()
        assert y[0, :, 0].isfinite().all()


# ---- dropout ----------------------------------------------------------------------------------


def test_dropout_factors_have_the_right_mean_and_depend_on_seed_and_layer() -> None:
    shape = torch.Size((4, 10, 16, 16))
    seed = torch.tensor(5)
    for p in (0.1, 0.5, 0.9):
        factors = dropout_factors(shape, p, seed, 0)
        kept = (factors > 0).double().mean().item()
        assert abs(kept - (1 - p)) < 5 * (p * (1 - p) / factors.numel()) ** 0.5
        assert torch.equal(factors.unique(), torch.tensor([0, 1 / (1 - p)], dtype=torch.float64))
    half = dropout_factors(shape, 0.5, seed, 0)
    for other_seed, layer in ((5, 1), (6, 0), (5 + 2**40, 0)):
        other = dropout_factors(shape, 0.5, torch.tensor(other_seed), layer)
        assert 0.4 < (other == half).double().mean() < 0.6


@each_impl
def test_a_part_of_a_batch_has_the_dropout_of_the_batch(impl: str) -> None:
    """Numbers of elements that do not divide by 4 too: 3 filters, 5x7 pixels."""
    seed = torch.tensor(9)
    batch = dropout_factors(torch.Size((5, 6, 5, 7)), 0.5, seed, 2)
    case = make_case("down_right", (5, 5, 7), 3, (), 0.5)

    def run(rows: slice, first_image: int) -> Tensor:
        x = case.x[rows].float().requires_grad_()
        conv_in, bias_in, conv_out, bias_out = (w.float() for w in case.weights)
        settings = {"shift": "down_right", "dropout": 0.5, "seed": seed, "layer": 3, "impl": impl}
        y = gated_resnet(
            x, (conv_in, bias_in), (conv_out, bias_out), first_image=first_image, **settings
        )
        (grad,) = torch.autograd.grad(y.sum(), x)
        return torch.stack([y.detach(), grad])

    whole = run(slice(None), 0)
    for first in range(5):
        part = dropout_factors(torch.Size((2, 6, 5, 7)), 0.5, seed, 2, first)
        assert torch.equal(part[: 5 - first], batch[first : first + 2])
        rows = slice(first, first + 2)
        torch.testing.assert_close(run(rows, first), whole[:, rows], rtol=1e-5, atol=1e-6)
    with pytest.raises(ValueError, match="first_image must lie in 0"):
        run(slice(None), -1)


@each_impl
def test_dropout_zero_draws_nothing(impl: str) -> None:
    block = GatedResnet(4, (2, 3), shift="down", dropout=0.0)
    x = torch.randn(1, 4, 3, 3)
    before = torch.get_rng_state()
    with use_impl(impl):
        block(x)
        block.dropout = 0.5
        block.eval()(x)
        assert torch.equal(torch.get_rng_state(), before)
        block.train()(x)
    assert not torch.equal(torch.get_rng_state(), before)


@each_impl
def test_the_generator_decides_the_dropout(impl: str) -> None:
    block = GatedResnet(4, (2, 3), shift="down", dropout=0.5)
    x = torch.randn(2, 4, 6, 6)
    with use_impl(impl):
        torch.manual_seed(1)
        first = block(x)
        second = block(x)
        torch.manual_seed(1)
        assert torch.equal(block(x), first)
    assert not torch.equal(first, second)


# ---- the op as torch sees it ------------------------------------------------------------------


@pytest.mark.grid
@needs_extension
@pytest.mark.parametrize("skips", [(), (4,), (4, 3)])
@pytest.mark.parametrize("dropout", [0.0, 0.5])
@each_shift
def test_gradcheck(shift: Shift, dropout: float, skips: tuple[int, ...]) -> None:
    case = make_case(shift, (2, 2, 3), 4, skips, dropout, gains=True, image_bias=True)
    given = case.operands(torch.float64)
    leaves = [t.requires_grad_() for t in leaves_of(given)]

    def block(*leaves: Tensor) -> Tensor:
        rest = iter(leaves)
        tensors = [t if t is None or not t.is_floating_point() else next(rest) for t in given]
        return gated_resnet_native(Operands._make(tensors), case.settings)

    assert torch.autograd.gradcheck(block, leaves)


@pytest.mark.grid
@needs_extension
@each_dtype
@pytest.mark.parametrize("skips", [(), (4, 3)])
def test_opcheck(dtype: torch.dtype, skips: tuple[int, ...]) -> None:
    case = make_case("down", (2, 3, 5), 4, skips, 0.5, gains=True, image_bias=bool(skips))
    given, settings = case.operands(dtype), case.settings
    _, h, gates = forward_op(*given, *settings, True, "auto")
    grad_y = case.grad_y.to(dtype)
    for save in (True, False):
        torch.library.opcheck(forward_op, (*given, *settings, save, "auto"))
    torch.library.opcheck(backward_op, (grad_y, h, gates, *given, *settings, "auto"))


@needs_extension
def test_a_second_derivative_is_refused() -> None:
    case = make_case()
    given = case.operands(torch.float64)
    given.x.requires_grad_()
    y = gated_resnet_native(given, case.settings)
    (grad,) = torch.autograd.grad(y.sum(), given.x, create_graph=True)
    with pytest.raises(NotImplementedError, match="differentiated twice"):
        grad.sum().backward()


@needs_extension
def test_frozen_weights_still_give_the_inputs_gradient() -> None:
    case = make_case(skip_channels=(5,))
    given = case.operands(torch.float64)

    def gradient() -> Tensor:
        y = gated_resnet_native(given, case.settings)
        return torch.autograd.grad(y.sum(), given.x)[0]

    given.x.requires_grad_()
    alone = gradient()
    for tensor in leaves_of(given):
        tensor.requires_grad_()
    assert torch.equal(gradient(), alone)


@needs_extension
def test_a_block_compiles_whole() -> None:
    block = GatedResnet(4, (2, 3), shift="down", skip_channels=4, dropout=0.5)
    x, skip = torch.randn(2, 4, 4, 4), torch.randn(2, 4, 4, 4)
    seed = torch.tensor(3)

    def loss(x: Tensor, skip: Tensor) -> Tensor:
        return block(x, skip, seed=seed).square().sum()

    with use_impl("native"):
        expected = torch.autograd.grad(loss(x, skip), list(block.parameters()))
        compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
        got = torch.autograd.grad(compiled(x, skip), list(block.parameters()))
    for a, b in zip(got, expected, strict=True):
        torch.testing.assert_close(a, b)
