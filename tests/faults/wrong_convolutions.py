"""Convolutions and their taps, for wrong calls: see harness.py."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor

from dsmooth import functional
from dsmooth.functional.taps import padding_of, taps_of
from tests.faults.harness import Arguments, Target, exact, random_tensor, run


def _one_dtype(given: Arguments) -> None:
    tensors = [value for value in given.values() if isinstance(value, Tensor)]
    assert len({tensor.dtype for tensor in tensors}) == 1


def _call(name: str, given: Arguments) -> list[Tensor]:
    y = getattr(functional, name)(**given)
    return [y.detach()]


def _taps(kh: int, kw: int, shift: Any) -> tuple[int, int]:
    """Rows and columns padded before the image; raises where they do not fit."""
    assert kh > 0
    assert kw > 0
    if shift == "down_right":
        return kh - 1, kw - 1
    assert kw % 2 == 1
    if shift == "down":
        return kh - 1, (kw - 1) // 2
    assert shift == "none"
    assert kh % 2 == 1
    return (kh - 1) // 2, (kw - 1) // 2


def _convolution(given: Arguments) -> list[Tensor]:
    _one_dtype(given)
    x, weight = exact(given["x"]), exact(given["weight"])
    (batch, channels, rows, cols), (filters, same, kh, kw) = x.shape, weight.shape
    assert channels == same
    stride = given["stride"]
    assert stride in (1, 2)
    top, left = _taps(kh, kw, given["shift"])
    size = (rows + stride - 1) // stride, (cols + stride - 1) // stride
    y = torch.zeros(batch, filters, *size, dtype=torch.float64)
    for i, j, r, c in itertools.product(range(kh), range(kw), range(size[0]), range(size[1])):
        row, col = stride * r + i - top, stride * c + j - left
        if 0 <= row < rows and 0 <= col < cols:
            y[:, :, r, c] += x[:, :, row, col] @ weight[:, :, i, j].T
    return [_plus_bias(y, given["bias"])]


def _transposed(given: Arguments) -> list[Tensor]:
    """The bias is of any dtype."""
    _one_dtype({name: given[name] for name in ("x", "weight")})
    x, weight = exact(given["x"]), exact(given["weight"])
    (batch, channels, rows, cols), (same, filters, kh, kw) = x.shape, weight.shape
    assert channels == same
    assert kh == 2
    assert given["shift"] in ("down", "down_right")
    assert given["shift"] == "down_right" or kw % 2 == 1
    first = (kw - 1) // 2 if given["shift"] == "down" else 0
    y = torch.zeros(batch, filters, 2 * rows, 2 * cols, dtype=torch.float64)
    for i, j, r, c in itertools.product(range(kh), range(kw), range(rows), range(cols)):
        if 0 <= 2 * c + j - first < 2 * cols:
            y[:, :, 2 * r + i, 2 * c + j - first] += x[:, :, r, c] @ weight[:, :, i, j]
    return [_plus_bias(y, given["bias"])]


def _plus_bias(y: Tensor, bias: Tensor | None) -> Tensor:
    if bias is None:
        return y
    assert bias.shape == y.shape[1:2]
    return y + bias.detach().double().view(-1, 1, 1)


def _convolution_arguments(**more: Any) -> Arguments:
    x, weight, bias = random_tensor(2, 2, 4, 6), random_tensor(3, 2, 2, 3), random_tensor(3)
    return {"x": x, "weight": weight, "bias": bias, "shift": "down", **more}


def _transposed_arguments(**more: Any) -> Arguments:
    given = _convolution_arguments(**more)
    return {**given, "weight": random_tensor(2, 3, 2, 3)}


# ---- taps -------------------------------------------------------------------------------------


def _taps_of(given: Arguments) -> list[Tensor]:
    taps = taps_of(**given)
    return [torch.tensor([taps.kh, taps.kw, taps.top, taps.left])]


def _expected_taps(given: Arguments) -> list[Tensor]:
    _, _, kh, kw = given["weight"].shape
    return [torch.tensor([kh, kw, *_taps(kh, kw, given["shift"])])]


def _padding_of(given: Arguments) -> list[Tensor]:
    return [torch.tensor(padding_of(**given))]


def _expected_padding(given: Arguments) -> list[Tensor]:
    kh, kw = given["kh"], given["kw"]
    top, left = _taps(kh, kw, given["shift"])
    return [torch.tensor([left, kw - 1 - left, top, kh - 1 - top])]


SIZES = [-1, 0, 2, 5, 2**40, "x"]
VALUES: dict[str, list[Any]] = {
    "shift": ["down", "down_right", "none", "bogus", "", 3],
    "stride": [-1, 0, 2, 3, 2**40, 1.5, "x"],
    "kh": SIZES,
    "kw": SIZES,
    "impl": ["reference", "native", "triton", "bogus"],
}
TARGETS = [
    *(
        Target(
            f"functional.{name}",
            lambda more=more: _convolution_arguments(stride=1, **more),
            lambda given, name=name: _call(name, given),
            _convolution,
            VALUES,
        )
        for name, more in (("shifted_conv2d", {"impl": "auto"}), ("shifted_conv2d_ref", {}))
    ),
    *(
        Target(
            f"functional.{name}",
            lambda more=more: _transposed_arguments(**more),
            lambda given, name=name: _call(name, given),
            _transposed,
            VALUES,
        )
        for name, more in (
            ("shifted_conv_transpose2d", {"impl": "auto"}),
            ("shifted_conv_transpose2d_ref", {}),
        )
    ),
    Target(
        "functional.taps.taps_of",
        lambda: {"weight": random_tensor(3, 2, 2, 3), "shift": "down"},
        _taps_of,
        _expected_taps,
        VALUES,
    ),
    Target(
        "functional.taps.padding_of",
        lambda: {"kh": 2, "kw": 3, "shift": "down"},
        _padding_of,
        _expected_padding,
        VALUES,
    ),
]


@pytest.mark.parametrize("target", TARGETS, ids=[target.name for target in TARGETS])
def test_a_wrong_call_raises_or_answers_rightly(target: Target) -> None:
    run(target, examples=100)
