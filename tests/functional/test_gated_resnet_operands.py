"""The arguments of the gated block: the field table, and errors for wrong ones."""

from __future__ import annotations

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
from dsmooth.functional import concat_elu, gated_resnet
from dsmooth.functional.gated_resnet_op import forward_op
from dsmooth.functional.gated_resnet_operands import FIELDS, Operands, Settings
from tests.helpers.data_makers import refuses
from tests.helpers.gated_cases import (
    EPS,
    STRIDES,
    Case,
    call,
    each_impl,
    make_case,
    needs_extension,
)

pytestmark = pytest.mark.quick


def arguments(case: Case, dtype: torch.dtype = torch.float32) -> dict[str, Any]:
    """By the names of the field table."""
    return case.operands(dtype)._asdict() | case.settings._asdict()


@needs_extension
def test_gradients_of_images_are_given_and_those_of_weights_all_or_none() -> None:
    case = full_case()
    given, settings = case.operands(torch.float32), case.settings
    _, h, gates, _ = forward_op(*given, *settings, "native", True)
    tensors = {**given._asdict(), "h": h, "gates": gates, "grad_y": h}
    named = [name for name in given._fields if name not in ("bias_nin", "seed")]
    grads = {name: torch.empty_like(tensors[name]) for name in named}
    numbers = 1, 1, settings.layer, 0, settings.keep_from, settings.scale
    backward = _extension.extension().gated_resnet_backward
    for name in grads:
        mixture = r" with grad_\w+ \(all gradients of weights are, or none\)"
        words = f"^grad_{name} must be given{mixture * FIELDS[name].is_parameter}, got None"
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


@pytest.mark.parametrize("name", Operands._fields)
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


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"shift": "bogus"}, "`shift` must be one of down, down_right, none, got 'bogus'"),
        ({"shift": "none"}, "a kernel of 2x3 has no centre for shift='none'"),
        ({"dropout": 1.0}, r"dropout must lie in \[0, 1\), got 1.0"),
        ({"dropout": math.nan}, r"dropout must lie in \[0, 1\), got nan"),
        ({"first_image": 2**31}, r"first_image must be an int in 0 .. 2\*\*31 - 1, got 2147483648"),
        ({"first_image": 1.0}, r"first_image must be an int in .*, got 1.0"),
        ({"layer": -1}, r"layer must be an int in 0 .. 2\*\*32 - 1, got -1"),
        ({"layer": 2**32}, r"layer must be an int in .*, got 4294967296"),
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
    wide = {k: v.double() if k not in (*Settings._fields, "seed") else v for k, v in given.items()}
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
    x, _, _, *w = make_case().operands(torch.float32)
    args = ((w[0], w[1]), (w[2], w[3]))
    refuses("skip must be one or two tensors", gated_resnet, x, *args, (x, x, x), shift="down")
    native = partial(gated_resnet, shift="down", impl="native")
    halves = [(weight.half(), bias.half()) for weight, bias in args]
    refuses("float16", native, x.half(), *halves, error=RuntimeError)
    wide = [(weight.new_ones(*weight.shape[:2], 5, 13), bias) for weight, bias in args]
    refuses("at most 64 taps, got 65", native, x, *wide, error=RuntimeError)


def test_the_reference_is_the_equation() -> None:
    case = make_case("none", (2, 4, 4), 3, (3,), image_bias=True)
    x, skip, _, *w = case.given
    conv = torch.nn.functional.conv2d
    h = conv(concat_elu(x), w[0], w[1], padding=1) + conv(concat_elu(skip), w[4], w[5])
    gates = conv(concat_elu(h), w[2], w[3], padding=1)
    for image_bias in (None, case.given.image_bias):
        if image_bias is not None:
            gates = gates + image_bias.view(2, 6, 1, 1)
        a, g = gates.chunk(2, dim=1)
        given = arguments(case, torch.float64) | {"image_bias": image_bias}
        torch.testing.assert_close(call(given, impl="reference"), x + a * torch.sigmoid(g))
