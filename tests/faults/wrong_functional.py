"""Convolutions, dropout, the drawing of mixtures and the rest, for wrong calls: see harness.py."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor

from dsmooth import functional
from dsmooth.functional import (
    Convolution,
    shifted_conv_triton,  # noqa: F401 - registers the ops called below
    shifted_convolutions,
)
from dsmooth.functional.dropout import draw_seed, dropout_factors, keep_from
from dsmooth.functional.taps import padding_of, taps_of, transposed_taps_of
from dsmooth.philox import Stream
from tests.faults.harness import Arguments, Target, guarded, run
from tests.helpers.random_words import words_of

SHIFTS = ["down", "down_right", "none", "bogus", "", 3]
IMPLS = ["reference", "native", "triton", "bogus"]


def _random(*shape: int) -> Tensor:
    generator = torch.Generator().manual_seed(len(shape))
    return guarded(torch.randn(shape, generator=generator))


def _exact(tensor: Tensor) -> Tensor:
    assert tensor.layout == torch.strided
    assert tensor.is_floating_point()
    return tensor.detach().double()


def _one_dtype(given: Arguments) -> None:
    tensors = [value for value in given.values() if isinstance(value, Tensor)]
    assert len({tensor.dtype for tensor in tensors}) == 1


# ---- activations and shifts -------------------------------------------------------------------


def _concat_elu(given: Arguments) -> list[Tensor]:
    x = _exact(given["x"])
    assert x.ndim == 4
    return [torch.cat([torch.where(v > 0, v, torch.expm1(v)) for v in (x, -x)], dim=1)]


def _shifted(given: Arguments, rows: int, cols: int) -> list[Tensor]:
    x = given["x"]
    assert x.ndim == 4
    assert x.layout == torch.strided
    y = torch.zeros_like(x)
    y[:, :, rows:, cols:] = x.detach()[:, :, : x.shape[2] - rows, : x.shape[3] - cols]
    return [y]


def _call(name: str, given: Arguments) -> list[Tensor]:
    y = getattr(functional, name)(**given)
    return [y.detach()]


# ---- convolutions -----------------------------------------------------------------------------


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
    x, weight = _exact(given["x"]), _exact(given["weight"])
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
    x, weight = _exact(given["x"]), _exact(given["weight"])
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
    x, weight, bias = _random(2, 2, 4, 6), _random(3, 2, 2, 3), _random(3)
    return {"x": x, "weight": weight, "bias": bias, "shift": "down", **more}


def _transposed_arguments(**more: Any) -> Arguments:
    given = _convolution_arguments(**more)
    return {**given, "weight": _random(2, 3, 2, 3)}


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
    norm = torch.linalg.vector_norm(_exact(weight), dim=dims)
    assert gain.shape == norm.shape
    factor = (gain.detach().double() / norm).view(
        (1, -1, 1, 1) if given["transposed"] else (-1, 1, 1, 1)
    )
    bias = None if given["bias"] is None else given["bias"].detach().double()
    exact = {"x": _exact(x), "weight": _exact(weight) * factor, "bias": bias}
    return _expected_of_triton({**given, **exact, "gain": None}) * 2


def _of_triton(given: Arguments) -> list[Tensor]:
    none = (None,) * 12
    operands = [given.get(name) for name in OPERANDS]
    settings = given["stride"], given["transposed"]
    return [torch.ops.dsmooth.shifted_conv_triton(*operands, *none, *settings)[0].detach()]


def _expected_of_triton(given: Arguments) -> list[Tensor]:
    return _transposed(given) if given["transposed"] else _convolution(given)


def _backward_of_triton(given: Arguments) -> list[Tensor]:
    operands = [None if name == "packed" else given[name] for name in OPERANDS]
    before = given["grad_y"], None, None, given["packed"]
    none = (None,) * 12
    settings = given["stride"], given["transposed"], given["need_x"], given["need_parameters"]
    found = torch.ops.dsmooth.shifted_conv_triton_backward(*before, *operands, *none, *settings)
    return list(found[:4])


def _expected_backward_of_triton(given: Arguments) -> list[Tensor]:
    if not given["need_x"] and not given["need_parameters"]:
        return [torch.zeros(0)] * 4
    assert given["x"].numel() == 0
    assert given["grad_y"].numel() == 0
    return [torch.zeros_like(given[name]) for name in ("x", "weight", "gain", "bias")]


def _backward_arguments() -> Arguments:
    given = _convolution_arguments(stride=1, transposed=False, gain=_random(3))
    more = {"need_x": True, "need_parameters": True}
    return {"grad_y": _random(2, 3, 4, 6), "packed": _random(2 * 36), **given, **more}


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


# ---- dropout ----------------------------------------------------------------------------------


def _factors(given: Arguments) -> list[Tensor]:
    return [dropout_factors(**given)]


def _expected_factors(given: Arguments) -> list[Tensor]:
    batch, channels, rows, cols = given["shape"]
    assert min(given["shape"]) >= 0
    seed, dropout = given["seed"], given["dropout"]
    assert seed.shape == ()
    assert seed.dtype == torch.int64
    assert 0 <= dropout < 1
    key = int(seed) & 0xFFFFFFFF, int(seed) >> 32 & 0xFFFFFFFF
    stream = int(Stream.DROPOUT)
    kept = []
    for number in range(batch * rows * cols * channels):
        counter = (number // 4, 0, given["layer"] & 0xFFFFFFFF, stream)
        kept.append((words_of(counter, key)[number % 4] >> 9) + 0.5 >= dropout * 2**23)
    factors = torch.tensor(kept, dtype=torch.float64) / (1 - dropout)
    return [factors.view(batch, rows, cols, channels).permute(0, 3, 1, 2)]


def _factors_arguments() -> Arguments:
    return {
        "shape": torch.Size((2, 3, 2, 3)),
        "dropout": 0.25,
        "seed": guarded(torch.tensor(2**40 + 5)),
        "layer": 3,
    }


def _drawn_seed(given: Arguments) -> list[Tensor]:
    torch.manual_seed(0)
    return [draw_seed(**given)]


def _expected_seed(given: Arguments) -> list[Tensor]:
    device = torch.device(given["device"] or "cpu")
    torch.manual_seed(0)
    return [torch.randint(2**63 - 1, (), device=device)]


def _keep_from(given: Arguments) -> list[Tensor]:
    return [torch.tensor(keep_from(**given))]


def _expected_keep_from(given: Arguments) -> list[Tensor]:
    assert 0 <= given["dropout"] < 1
    numbers = torch.arange(2**23)
    return [((numbers + 0.5) * 2.0**-23 < given["dropout"]).sum()]


# ---- mixtures, and the choice of an implementation --------------------------------------------


def _sample_arguments(channels: int) -> Arguments:
    generator = torch.Generator().manual_seed(3)
    params = torch.randn(2, (3 if channels == 1 else 10) * 2 + 2, 2, 3, generator=generator)
    uniforms = torch.rand(2, 4, 2, 3, generator=generator) * 0.9 + 0.05
    return {
        "params": guarded(params),
        "uniforms": guarded(uniforms),
        "image_channels": channels,
        "likelihood": "discretized",
        "temperature": 0.7,
        "atoms": (0, 255),
        "smoothing_scale": 0.0,
    }


def _sample(given: Arguments) -> list[Tensor]:
    return [functional.logistic_mixture_sample(**given).detach()]


def _expected_sample(given: Arguments) -> list[Tensor]:
    """The same in float64: a shape that does not fit raises here too."""
    tensors = {name: _exact(given[name]).contiguous() for name in ("params", "uniforms")}
    assert tensors["uniforms"].shape[1] == 4
    assert 0 < given["temperature"] < float("inf")
    return _sample({**given, **tensors})


def _used_impl(given: Arguments) -> list[Tensor]:
    x, weight = torch.ones(1, 1, 2, 2), torch.ones(1, 1, 1, 1)
    with functional.use_impl(**given):
        return [functional.shifted_conv2d(x, weight)]


def _expected_impl(given: Arguments) -> list[Tensor]:
    assert given["impl"] in ("auto", "reference", "native")
    return [torch.ones(1, 1, 2, 2)]


SIZES = [-1, 0, 2, 5, 2**40, "x"]
VALUES: dict[str, list[Any]] = {
    "shift": SHIFTS,
    "impl": IMPLS,
    "transposed": [True, 2, "x"],
    "stride": [-1, 0, 2, 3, 2**40, 1.5, "x"],
    "kh": SIZES,
    "kw": SIZES,
    "dropout": [0.0, 0.5, 1.0, -0.5, 2.0, float("nan"), "x"],
    "layer": [-1, 2**31, 2**70, 1.5, "x"],
    "shape": [(), (2, 3), (2, 3, -1, 1), (0, 3, 2, 2), (2, 3, 2.0, 2), "x"],
    "device": ["meta", "bogus", 3, 1.5],
    "image_channels": [-1, 0, 2, 3, 4, 1.0, "x"],
    "likelihood": ["continuous", "gaussian", "bogus", "", 3],
    "temperature": [0.0, -1.0, float("nan"), float("inf"), "x", 2.0],
    "atoms": [(), (0,), (0, 0), (256, 1), (-1, 2), (0, 1, 2), "x"],
    "smoothing_scale": [0.5, -1.0, float("nan"), "x"],
}
TARGETS = [
    Target(
        "functional.concat_elu",
        lambda: {"x": _random(2, 3, 4, 5)},
        lambda given: _call("concat_elu", given),
        _concat_elu,
        VALUES,
    ),
    *(
        Target(
            f"functional.{name}",
            lambda: {"x": _random(2, 3, 4, 5)},
            lambda given, name=name: _call(name, given),
            lambda given, by=by: _shifted(given, *by),
            VALUES,
        )
        for name, by in (("down_shift", (1, 0)), ("right_shift", (0, 1)))
    ),
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
                stride=1, transposed=False, impl="auto", gain=_random(3) if gain else None
            ),
            *(_together, _expected_together, VALUES),
        )
        for gain in (False, True)
    ),
    Target(
        "torch.ops.dsmooth.shifted_conv_triton",
        lambda: _convolution_arguments(stride=1, transposed=False, gain=_random(3)),
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
        lambda: {"weight": _random(3, 2, 2, 3), "shift": "down", "stride": 1},
        _taps_of,
        _expected_taps,
        VALUES,
    ),
    Target(
        "functional.taps.transposed_taps_of",
        lambda: {"weight": _random(3, 2, 2, 3), "shift": "down"},
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
    Target(
        "functional.dropout.dropout_factors",
        _factors_arguments,
        _factors,
        _expected_factors,
        VALUES,
    ),
    Target(
        "functional.dropout.draw_seed",
        lambda: {"device": torch.device("cpu")},
        _drawn_seed,
        _expected_seed,
        VALUES,
    ),
    Target(
        "functional.dropout.keep_from",
        lambda: {"dropout": 0.5},
        _keep_from,
        _expected_keep_from,
        VALUES,
    ),
    *(
        Target(
            f"functional.logistic_mixture_sample, C = {channels}",
            lambda channels=channels: _sample_arguments(channels),
            _sample,
            _expected_sample,
            VALUES,
        )
        for channels in (1, 3)
    ),
    Target("functional.use_impl", lambda: {"impl": "auto"}, _used_impl, _expected_impl, VALUES),
]


@pytest.mark.parametrize("target", TARGETS, ids=[target.name for target in TARGETS])
def test_a_wrong_call_raises_or_answers_rightly(target: Target) -> None:
    run(target, examples=100)
