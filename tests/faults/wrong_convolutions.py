"""Shifted convolutions, for wrong calls."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
from torch import Tensor

from dsmooth import functional
from tests.faults.harness import Arguments, Target, exact, random_tensor, run

ALL = ("x", "weight", "bias")


def _call(name: str, given: Arguments) -> list[Tensor]:
    return [getattr(functional, name)(**given).detach()]


def _expected(name: str, given: Arguments) -> list[Tensor]:
    """The reference in float64 of tensors of one dtype; a transposed one's bias is of any."""
    names = ("x", "weight") if "transpose" in name else ("x", "weight", "bias")
    tensors = [given[n] for n in names if given[n] is not None]
    assert len({tensor.dtype for tensor in tensors}) == 1
    wide = {n: value if value is None else exact(value) for n, value in given.items() if n in ALL}
    rest = {n: value for n, value in given.items() if n not in (*ALL, "impl")}
    return _call(name.removesuffix("_ref") + "_ref", {**wide, **rest})


def _convolution_arguments(**more: Any) -> Arguments:
    x, weight, bias = random_tensor(2, 2, 4, 6), random_tensor(3, 2, 2, 3), random_tensor(3)
    return {"x": x, "weight": weight, "bias": bias, "shift": "down", **more}


def _transposed_arguments(**more: Any) -> Arguments:
    given = _convolution_arguments(**more)
    return {**given, "weight": random_tensor(2, 3, 2, 3)}


VALUES: dict[str, list[Any]] = {
    "shift": ["down", "down_right", "none", "bogus", "", 3],
    "stride": [-1, 0, 2, 3, 2**40, 1.5, "x"],
    "impl": ["reference", "native", "triton", "bogus"],
}
FUNCTIONS = {
    "shifted_conv2d": lambda: _convolution_arguments(stride=1, impl="auto"),
    "shifted_conv2d_ref": lambda: _convolution_arguments(stride=1),
    "shifted_conv_transpose2d": lambda: _transposed_arguments(impl="auto"),
    "shifted_conv_transpose2d_ref": lambda: _transposed_arguments(),
}
TARGETS = [
    Target(f"functional.{name}", arguments, partial(_call, name), partial(_expected, name), VALUES)
    for name, arguments in FUNCTIONS.items()
]


@pytest.mark.parametrize("target", TARGETS, ids=[target.name for target in TARGETS])
def test_a_wrong_call_raises_or_answers_rightly(target: Target) -> None:
    run(target, examples=100)
