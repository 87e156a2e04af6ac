"""Laws of the gated block: its implementations against the reference, and what it refuses."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from dsmooth import _extension
from dsmooth.functional import Shift, concat_elu, gated_resnet, use_impl
from dsmooth.functional.gated_resnet import dropout_factors
from dsmooth.functional.gated_resnet_op import forward_op
from dsmooth.functional.gated_resnet_operands import FIELDS, GatedResnetCall, Operands
from dsmooth.machine import torch_threads
from dsmooth.nn.layers import GatedResnet
from tests.helpers.data_makers import refuses
from tests.helpers.gated_cases import (
    EPS,
    IMAGES,
    INTERPRETED,
    KERNELS,
    OPTIONS,
    SETS,
    STRIDES,
    Case,
    assert_as_good,
    call,
    each_dtype,
    each_impl,
    make_case,
    needs_extension,
)

IMPL = "triton" if INTERPRETED else "native"
FLOATS = [name for name in FIELDS if name not in (*IMAGES, "seed")]
# Images, filters, skips; of the interpreted kernels with the shift and the dropout of each.
SHAPES = [
    ((1, 1, 1), 1, ()),
    ((2, 5, 7), 5, (5,)),
    ((1, 7, 4), 40, (40, 40)),
    ((9, 1, 9), 16, (3, 2)),  # several images in a sum of gradients
    ((2, 6, 1), 24, ()),
    ((2, 4, 30), 20, (20,)),
    ((1, 9, 33), 36, (9, 4)),
    ((0, 4, 4), 5, (5,)),
]
full = partial(pytest.param, marks=pytest.mark.full)
CASES = [
    ("down", (1, 1, 1), 1, (), 0.0),
    ("down", (1, 5, 7), 5, (5, 3), 0.5),
    ("down_right", (2, 5, 7), 4, (4,), 0.5),
    ("none", (2, 3, 17), 5, (), 0.3),  # a block begins inside an image and ends in the next
    full("down", (0, 4, 4), 5, (5,), 0.5),
    full("down_right", (1, 1, 3), 40, (40, 40), 0.5),
    full("down_right", (1, 1, 2), 160, (160,), 0.5),
]
if not INTERPRETED:
    CASES = [(s, *shape, p) for s in KERNELS for shape in SHAPES for p in (0.0, 0.3, 0.9)]


@pytest.mark.quick
@pytest.mark.grid
@pytest.mark.parametrize("impl", ["triton"] if INTERPRETED else SETS)
@each_dtype
@pytest.mark.parametrize(("shift", "size", "filters", "skips", "dropout"), CASES)
def test_as_good_as_eager(shift, size, filters, skips, dropout, dtype, impl) -> None:
    dropped = dropout > 0
    case = make_case(shift, size, filters, skips, dropout, dtype, gains=dropped, image_bias=dropped)
    exact = case.run("reference", torch.float64)
    eager = case.run("reference", dtype)
    assert_as_good(case.run(impl, dtype), eager, exact, EPS[dtype])


@needs_extension
@pytest.mark.parametrize("threads", [1, 2])
def test_denormal_gradients_are_zero(threads: int) -> None:
    """On a processor that is slow at them they would decide the time. The caller's own stay."""
    case = make_case(size=(2, 3, 4), skip_channels=(5,))
    denormal = torch.tensor(2.0**-130)
    case.grad_y.fill_(denormal)
    with torch_threads(threads):
        results = case.run("native", torch.float32)
    assert results.pop("y").all()
    assert not any(grad.any() for grad in results.values())
    assert denormal * torch.ones(()) == 2.0**-130


@each_impl
@each_dtype
@pytest.mark.parametrize("shift", ["down", "down_right"])
def test_no_output_sees_a_later_pixel(shift: Shift, dtype: torch.dtype, impl: str) -> None:
    """Image i of the batch keeps the pixels that output i may see, and loses the others to NaN."""
    rows, cols = (2, 3) if INTERPRETED else (3, 4)
    case = make_case(shift, (1, rows, cols), 5, (5,), dtype=dtype)
    x, skip, _, *weights = case.operands(dtype).values()
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
        case.given["x"][0, 2, 1, 1] = bad
        y = case.run(impl, torch.float32)["y"]
        assert not y[0, 2, 1, 1].isfinite()
        assert y[0, :, 0].isfinite().all()


def test_dropout_factors_have_the_right_mean_and_depend_on_seed_and_layer() -> None:
    shape = torch.Size((4, 10, 16, 16))
    seed = torch.tensor(5)
    for p in (0.1, 0.5, 0.9):
        factors = dropout_factors(shape, GatedResnetCall("none", p), seed)
        kept = (factors > 0).double().mean().item()
        assert abs(kept - (1 - p)) < 5 * (p * (1 - p) / factors.numel()) ** 0.5
        assert torch.equal(factors.unique(), torch.tensor([0, 1 / (1 - p)], dtype=torch.float64))
    half = dropout_factors(shape, GatedResnetCall("none", 0.5), seed)
    for other_seed, layer in ((5, 1), (6, 0), (5 + 2**40, 0)):
        other = dropout_factors(
            shape, GatedResnetCall("none", 0.5, layer), torch.tensor(other_seed)
        )
        assert 0.4 < (other == half).double().mean() < 0.6


@each_impl
def test_a_part_of_a_batch_has_the_dropout_of_the_batch(impl: str) -> None:
    """Numbers of elements that do not divide by 4 too: 3 filters, 5x7 pixels."""
    seed = torch.tensor(9)
    options = GatedResnetCall("down_right", 0.5, 2)
    batch = dropout_factors(torch.Size((5, 6, 5, 7)), options, seed)
    case = make_case("down_right", (5, 5, 7), 3, (), 0.5)
    given = case.operands(torch.float32)

    def run(rows: slice, first_image: int) -> Tensor:
        x = given["x"][rows].requires_grad_()
        changed = {"x": x, "first_image": first_image, "seed": seed}
        y = call(given | case.options._asdict() | changed, impl=impl)
        (grad,) = torch.autograd.grad(y.sum(), x)
        return torch.stack([y.detach(), grad])

    whole = run(slice(None), 0)
    for first in range(5):
        placed = options._replace(first_image=first)
        part = dropout_factors(torch.Size((2, 6, 5, 7)), placed, seed)
        assert torch.equal(part[: 5 - first], batch[first : first + 2])
        rows = slice(first, first + 2)
        torch.testing.assert_close(run(rows, first), whole[:, rows], rtol=1e-5, atol=1e-6)
    refuses("`first_image` must lie in 0", run, slice(None), -1)


@each_impl
def test_dropped_values_are_zero_even_if_not_finite(impl: str) -> None:
    case = make_case("down", (1, 1, 1), 1, (), 0.9)
    seeds = map(torch.tensor, itertools.count())
    shape = torch.Size((1, 2, 1, 1))
    seed = next(s for s in seeds if not dropout_factors(shape, case.options, s).any())
    for bad in (torch.nan, torch.inf):
        given = case.operands(torch.float32) | case.options._asdict() | {"seed": seed}
        given["bias_in"] = torch.full_like(given["bias_in"], bad)
        assert call(given, impl=impl).isfinite().all()


@each_impl
def test_the_generator_decides_the_dropout(impl: str) -> None:
    """Nothing is drawn of it without dropout."""
    block = GatedResnet(4, (2, 3), shift="down", dropout=0.5)
    x = torch.randn(2, 4, 6, 6)
    before = torch.get_rng_state()
    with use_impl(impl):
        block.eval()(x)
        block.train().dropout = 0.0
        block(x)
        assert torch.equal(torch.get_rng_state(), before)
        block.dropout = 0.5
        torch.manual_seed(1)
        first, second = block(x), block(x)
        torch.manual_seed(1)
        assert torch.equal(block(x), first)
    assert not torch.equal(first, second)


GPU_SHAPES = [
    ((1, 1, 1), 1, ()),
    ((3, 5, 7), 5, (5, 3)),
    ((2, 28, 28), 40, (40,)),
    ((2, 8, 33), 160, (160, 160)),
]


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize(("size", "filters", "skips"), GPU_SHAPES)
@pytest.mark.parametrize("shift", list(KERNELS))
def test_as_good_as_eager_on_a_gpu(shift, size, filters, skips, dtype) -> None:
    case = make_case(shift, size, filters, skips, 0.5, dtype, gains=True)
    exact = case.run("reference", torch.float64)
    # Both in the same precision: torch's convolutions round to TF32 where the kernels do.
    eager = case.run("reference", dtype, device="cuda")
    is_tf32 = dtype == torch.float32 and torch.backends.cudnn.conv.fp32_precision == "tf32"
    eps = 2.0**-11 if is_tf32 else EPS[dtype]
    for name, prepare in STRIDES.items():
        got = case.run("triton", dtype, prepare, device="cuda")
        assert_as_good(got, eager, exact, eps)
        again = case.run("auto", dtype, prepare, device="cuda")
        for key, value in got.items():
            assert torch.equal(again[key], value), (name, key)


@pytest.mark.gpu
def test_tf32_where_torch_allows_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """TF32 is used where torch's own convolutions may use it, and as exactly."""
    case = make_case("down", (2, 16, 16), 64, (64,), 0.0, torch.float32)
    exact = case.run("reference", torch.float64)
    errors = []
    for precision in ("ieee", "tf32"):
        monkeypatch.setattr(torch.backends.cudnn.conv, "fp32_precision", precision)
        got = case.run("triton", torch.float32, device="cuda")
        eager = case.run("reference", torch.float32, device="cuda")
        assert_as_good(got, eager, exact, 2.0**-23 if precision == "ieee" else 2.0**-11)
        errors.append((got["y"].double() - exact["y"]).abs().max().item())
    assert errors[0] < 1e-5 < errors[1] < 1e-2


def test_operands_are_the_inputs_of_the_field_table() -> None:
    assert Operands._fields == tuple(FIELDS)


def arguments(case: Case, dtype: torch.dtype = torch.float32) -> dict[str, Any]:
    """By the names of the field table."""
    return case.operands(dtype) | {name: getattr(case.options, name) for name in OPTIONS}


@needs_extension
def test_gradients_of_images_are_given_and_those_of_weights_all_or_none() -> None:
    case = full_case()
    given, options = case.operands(torch.float32), case.options
    _, h, gates, _ = forward_op(*given.values(), *options._replace(impl="native", save=True))
    tensors = {**given, "h": h, "gates": gates, "grad_y": h}
    named = [name for name in given if name not in ("bias_nin", "seed")]
    grads = {name: torch.empty_like(tensors[name]) for name in named}
    numbers = 1, 1, options.layer, 0, options.keep_from, options.scale
    backward = _extension.extension().gated_resnet_backward
    for name in grads:
        words = f"^grad_{name} must be given, got None"
        if name == "conv_in":  # without it no gradient of a weight is wanted
            words = "^grad_bias_in must be None, got a tensor"
        others = {f"grad_{n}": t for n, t in grads.items() if n != name}
        refuses(words, backward, tensors | others, *numbers)


def full_case() -> Case:
    return make_case("down", skip_channels=(3, 2), dropout=0.5, gains=True, image_bias=True)


def one_longer(tensor: Tensor) -> Tensor:
    shape = [extent + (i == tensor.ndim - 1) for i, extent in enumerate(tensor.shape)] or [1]
    return torch.ones(shape, dtype=tensor.dtype)


WRONG: dict[str, tuple[Callable[[Tensor], Any], str]] = {
    "shape": (one_longer, r".* must have shape .*, got \({got}\)|a kernel of 2x4 has no centre"),
    "empty": (lambda t: t.new_empty(0), r"{name} must have .*, got \(0,\)"),
    "dtype": (lambda t: t.to(torch.int32), r"{name} must be .*, got .*int32"),
    "device": (lambda t: t.to("meta"), r".* must be on (cpu, got meta|meta, got cpu)"),
    "number": (lambda t: 3.0, r"{name} must be a .*tensor, got float"),
}


@pytest.mark.quick
@pytest.mark.parametrize("name", FIELDS)
@pytest.mark.parametrize("fault", list(WRONG))
def test_every_tensor_is_checked(name: str, fault: str) -> None:
    given = arguments(full_case())
    change, message = WRONG[fault]
    given[name] = change(given[name])
    message = message.format(name=name, got=".*")
    error = refuses(message, call, given, error=(ValueError, TypeError))
    # The others must fit the shapes of x and conv_in, and be where x is.
    decides = (name, fault) in (("x", "shape"), ("conv_in", "shape"), ("x", "device"))
    assert decides or error.startswith(name)


@pytest.mark.quick
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"shift": "bogus"}, "`shift` must be one of down, down_right, none, got 'bogus'"),
        ({"shift": "none"}, "a kernel of 2x3 has no centre for shift='none'"),
        ({"dropout": 1.0}, r"dropout must lie in \[0, 1\), got 1.0"),
        ({"dropout": math.nan}, r"dropout must lie in \[0, 1\), got nan"),
        ({"first_image": 2**31}, "`first_image` must lie in 0 .. 2147483647, got 2147483648"),
        ({"first_image": 1.0}, "`first_image` must be a whole number, got 1.0"),
        ({"layer": -1}, "`layer` must lie in 0 .. 4294967295, got -1"),
        ({"layer": 2**32}, "`layer` must lie in .*, got 4294967296"),
        ({"nin_skip": None}, "nin_skip must be given with skip, got None"),
        ({"skip": None, "skip_2": None}, "nin_skip must be None without skip, got a tensor"),
        ({"gain_nin": None}, "gains must be empty or 3 tensors"),
        ({"x": torch.ones(2, 5, 0, 7)}, r"must have a channel, a row and a column, got \(2, 5, 0"),
    ],
)
def test_settings_and_absence_are_checked(changes: dict[str, Any], message: str) -> None:
    given = arguments(full_case()) | changes
    if given["nin_skip"] is None:
        given["gain_nin"] = None
    refuses(message, call, given)


def test_without_autocast_all_have_one_dtype() -> None:
    given = arguments(full_case())
    wide = {k: v.double() if k not in (*OPTIONS, "seed") else v for k, v in given.items()}
    with torch.autocast("cpu", torch.bfloat16):
        y = call(wide)
    assert y.dtype == torch.float64
    assert torch.equal(y, call(wide))
    given["bias_out"] = given["bias_out"].double()
    refuses("bias_out must be float32, got float64", call, given)
    with torch.autocast("cpu", torch.bfloat16):
        refuses("bias_out must be float32 or bfloat16 or float16", call, given)


@each_impl
def test_an_image_comes_back_in_the_dtype_of_autocast(impl: str) -> None:
    with torch.autocast("cpu", torch.bfloat16):
        y = call(arguments(full_case()), impl=impl.partition(":")[0])
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(y.float(), call(arguments(full_case())), atol=0.1, rtol=0.05)


def test_the_dropout_is_computed_in_float64() -> None:
    """A number of another kind of floating point is the same probability."""
    given, p = arguments(full_case(), torch.float64), np.float32(0.3)
    result, exact = (call(given | {"dropout": q}, impl="reference") for q in (p, float(p)))
    assert torch.equal(result, exact)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@each_impl
def test_hooks_that_change_the_memory_order_change_no_gradient(impl, dtype) -> None:
    case = full_case()
    plain = case.run(impl, dtype, STRIDES["channels_last"])
    with torch.autograd.graph.saved_tensors_hooks(Tensor.contiguous, Tensor.contiguous):
        hooked = case.run(impl, dtype, STRIDES["channels_last"])
    for name, value in plain.items():
        if impl == "native":
            assert torch.equal(hooked[name], value), name
        else:  # torch's own convolutions sum in an order that depends on the memory order
            band = 32 * EPS[dtype] * value.abs().max().item()
            assert_close(hooked[name], value, rtol=0, atol=band)


@needs_extension
def test_native_says_why_it_cannot_run() -> None:
    x, _, _, *w = make_case().operands(torch.float32).values()
    args = ((w[0], w[1]), (w[2], w[3]))
    refuses("skip must be one or two tensors", gated_resnet, x, *args, (x, x, x), shift="down")
    native = partial(gated_resnet, shift="down", impl="native")
    halves = [(weight.half(), bias.half()) for weight, bias in args]
    refuses("float16", native, x.half(), *halves, error=RuntimeError)
    wide = [(weight.new_ones(*weight.shape[:2], 5, 13), bias) for weight, bias in args]
    refuses("at most 64 taps, got 65", native, x, *wide, error=RuntimeError)


def test_the_reference_is_the_equation() -> None:
    case = make_case("none", (2, 4, 4), 3, (3,), image_bias=True)
    x, skip, _, *w = case.given.values()
    conv = torch.nn.functional.conv2d
    h = conv(concat_elu(x), w[0], w[1], padding=1) + conv(concat_elu(skip), w[4], w[5])
    gates = conv(concat_elu(h), w[2], w[3], padding=1)
    for image_bias in (None, case.given["image_bias"]):
        if image_bias is not None:
            gates = gates + image_bias.view(2, 6, 1, 1)
        a, g = gates.chunk(2, dim=1)
        given = arguments(case, torch.float64) | {"image_bias": image_bias}
        torch.testing.assert_close(call(given, impl="reference"), x + a * torch.sigmoid(g))
