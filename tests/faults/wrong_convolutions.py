"""Convolutions and their taps, for wrong calls: see harness.py."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor

from dsmooth import functional
from dsmooth.functional import Convolution, shifted_convolutions
from dsmooth.functional.shifted_conv_triton import (
    shifted_conv_triton,
    shifted_conv_triton_backward,
)
from dsmooth.functional.taps import padding_of, taps_of, transposed_taps_of
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


OPERANDS = ("x", "weight", "gain", "bias", "packed", "shift")


def _together(given: Arguments) -> list[Tensor]:
    names = ("x", "weight", "bias", "shift", "gain")
    convs = [Convolution(**{name: given[name] for name in names})] * 2
    settings = {name: given[name] for name in ("stride", "transposed", "impl")}
    return [y.detach() for y in shifted_convolutions(convs, **settings)]


def _expected_together(given: Arguments) -> list[Tensor]:
    x, weight, gain = given["x"], given["weight"], given["gain"]
    if gain is None:
        return _expected_of_triton(given) * 2
    assert x.dtype == torch.promote_types(weight.dtype, gain.dtype)
    assert given["transposed"] or given["bias"] is None or given["bias"].dtype == x.dtype
    dims = (0, 2, 3) if given["transposed"] else (1, 2, 3)
    norm = torch.linalg.vector_norm(exact(weight), dim=dims)
    assert gain.shape == norm.shape
    factor = (gain.detach().double() / norm).view(
        (1, -1, 1, 1) if given["transposed"] else (-1, 1, 1, 1)
    )
    bias = None if given["bias"] is None else given["bias"].detach().double()
    folded = {"x": exact(x), "weight": exact(weight) * factor, "bias": bias}
    return _expected_of_triton({**given, **folded, "gain": None}) * 2


def _of_triton(given: Arguments) -> list[Tensor]:
    none = (None,) * 12
    operands = [given.get(name) for name in OPERANDS]
    settings = given["stride"], given["transposed"]
    return [shifted_conv_triton(*operands, *none, *settings)[0].detach()]


def _expected_of_triton(given: Arguments) -> list[Tensor]:
    return _transposed(given) if given["transposed"] else _convolution(given)


def _backward_of_triton(given: Arguments) -> list[Tensor]:
    operands = [None if name == "packed" else given[name] for name in OPERANDS]
    before = given["grad_y"], None, None, given["packed"]
    none = (None,) * 12
    settings = given["stride"], given["transposed"], given["need_x"], given["need_parameters"]
    found = shifted_conv_triton_backward(*before, *operands, *none, *settings)
    return list(found[:4])


def _expected_backward_of_triton(given: Arguments) -> list[Tensor]:
    if not given["need_x"] and not given["need_parameters"]:
        return [torch.zeros(0)] * 4
    assert given["x"].numel() == 0
    assert given["grad_y"].numel() == 0
    return [torch.zeros_like(given[name]) for name in ("x", "weight", "gain", "bias")]


def _backward_arguments() -> Arguments:
    given = _convolution_arguments(stride=1, transposed=False, gain=random_tensor(3))
    more = {"need_x": True, "need_parameters": True}
    return {"grad_y": random_tensor(2, 3, 4, 6), "packed": random_tensor(2 * 36), **given, **more}


# ---- taps -------------------------------------------------------------------------------------


def _taps_of(given: Arguments) -> list[Tensor]:
    taps = taps_of(**given)
    return [torch.tensor([taps.kh, taps.kw, taps.top, taps.left, taps.stride])]


def _expected_taps(given: Arguments) -> list[Tensor]:
    _, _, kh, kw = given["weight"].shape
    assert given["stride"] in (1, 2)
    return [torch.tensor([kh, kw, *_taps(kh, kw, given["shift"]), given["stride"]])]


def _transposed_taps_of(given: Arguments) -> list[Tensor]:
    taps = transposed_taps_of(**given)
    return [torch.tensor([taps.kh, taps.kw, taps.top, taps.left, taps.stride])]


def _expected_transposed_taps(given: Arguments) -> list[Tensor]:
    _, _, kh, kw = given["weight"].shape
    assert given["shift"] in ("down", "down_right")
    left = _taps(kh, kw, given["shift"])[1] if given["shift"] == "down" else 0
    return [torch.tensor([kh, kw, 0, left, 2])]


def _padding_of(given: Arguments) -> list[Tensor]:
    return [torch.tensor(padding_of(**given))]


def _expected_padding(given: Arguments) -> list[Tensor]:
    kh, kw = given["kh"], given["kw"]
    top, left = _taps(kh, kw, given["shift"])
    return [torch.tensor([left, kw - 1 - left, top, kh - 1 - top])]


SIZES = [-1, 0, 2, 5, 2**40, "x"]
VALUES: dict[str, list[Any]] = {
    "shift": ["down", "down_right", "none", "bogus", "", 3],
    "transposed": [True, 2, "x"],
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
    *(
        Target(
            f"functional.shifted_convolutions, {'with' if gain else 'without'} gains",
            lambda gain=gain: _convolution_arguments(
                stride=1, transposed=False, impl="auto", gain=random_tensor(3) if gain else None
            ),
            *(_together, _expected_together, VALUES),
        )
        for gain in (False, True)
    ),
    Target(
        "torch.ops.dsmooth.shifted_conv_triton",
        lambda: _convolution_arguments(stride=1, transposed=False, gain=random_tensor(3)),
        *(_of_triton, _expected_of_triton, VALUES),
        runs=False,
    ),
    Target(
        "torch.ops.dsmooth.shifted_conv_triton_backward",
        *(_backward_arguments, _backward_of_triton, _expected_backward_of_triton, VALUES),
        runs=False,
    ),
    Target(
        "functional.taps.taps_of",
        lambda: {"weight": random_tensor(3, 2, 2, 3), "shift": "down", "stride": 1},
        _taps_of,
        _expected_taps,
        VALUES,
    ),
    Target(
        "functional.taps.transposed_taps_of",
        lambda: {"weight": random_tensor(3, 2, 2, 3), "shift": "down"},
        _transposed_taps_of,
        _expected_transposed_taps,
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
