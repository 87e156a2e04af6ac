"""The gated block, for wrong calls."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from dsmooth import _extension
from dsmooth.functional.gated_resnet import dropout_factors
from dsmooth.functional.gated_resnet_operands import FIELDS, Operands, check_operands
from dsmooth.functional.shifted_conv import concat_elu, fold_weight_norm
from dsmooth.kernels.geometry import Settings
from tests.faults.harness import Arguments, Target, guarded, run
from tests.helpers.gated_cases import call, make_case

EXTENSION = _extension.extension()
GRADIENTS = [
    f"grad_{n}" for n, field in FIELDS.items() if field.gradient and field.group == "Input"
]
PLACE = ("layer", "first_image")
SETTINGS = ("pad_top", "pad_left", *PLACE, "keep_from", "scale", "threads", "instruction_set")
DROPOUT = 0.5
LAYERS = [-1, 2**31, 2**70, 1.5, "x"]
VALUES: dict[str, list[Any]] = {
    "pad_top": [-1, 0, 2, 2**20, 2**40],
    "pad_left": [-1, 0, 3, 2**20, 2**40],
    "layer": LAYERS,
    "first_image": [-1, 3, 2**31, 2**70, 1.5],
    "keep_from": [-1, 0, 1, 2**40, 0.5],
    "scale": [0.0, float("nan"), "x"],
    "threads": [0, -3, 2, 10**9, 2**40],
    "instruction_set": ["generic", "sse9", "", 3],
    "shift": ["down_right", "none", "bogus", "", 3],
    "dropout": [0.0, 0.25, 1.0, -0.5, 2.0, float("nan"), "x"],
    "impl": ["native", "reference", "triton", "bogus"],
}


def _base() -> dict[str, Any]:
    case = make_case("down", (2, 3, 4), 3, (2, 1), DROPOUT, gains=True, image_bias=True)
    tensors = case.operands(torch.float32)._asdict()
    return {name: guarded(tensor) for name, tensor in tensors.items()}


def _block(
    given: Arguments,
    numbers: tuple[int, int, int, int, int, float],
    saved: tuple[Tensor, Tensor] | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """y, h and the gates, line for line the equation; of tensors that fit, else it raises.

    saved: values that h and the gates have instead, with gradients as if they were computed.
    """
    top, left, layer, first_image, least, scale = numbers
    x, seed, image_bias = given["x"], given["seed"], given["image_bias"]
    skips = [given[name] for name in ("skip", "skip_2") if given[name] is not None]
    images = {"x": x, **dict(zip(("skip", "skip_2"), skips, strict=False))}
    weights = {name: given[name] for name in Operands._fields[3:-1]}
    check_operands(images, weights, seed, Settings("down_right"))  # which fits every kernel
    kh, kw = given["conv_in"].shape[2:]

    def conv(image: Tensor, part: str) -> Tensor:
        padded = F.pad(image, (left, kw - 1 - left, top, kh - 1 - top))
        weight = fold_weight_norm(given[f"conv_{part}"], given[f"gain_{part}"])
        return F.conv2d(padded, weight, given[f"bias_{part}"])

    h = conv(concat_elu(x), "in")
    if skips:
        nin = fold_weight_norm(given["nin_skip"], given["gain_nin"])
        h = h + F.conv2d(concat_elu(torch.cat(skips, dim=1)), nin, given["bias_nin"])
    if saved is not None:
        h = saved[0].double() + (h - h.detach())
    e = concat_elu(h)
    if seed is not None:
        settings = Settings("none", least / 2**23, layer, first_image)
        kept = dropout_factors(e.shape, settings, seed) > 0
        e = torch.where(kept, e * scale, 0)
    gates = conv(e, "out")
    if image_bias is not None:
        gates = gates + image_bias[:, :, None, None]
    if saved is not None:
        gates = saved[1].double() + (gates - gates.detach())
    a, g = gates.chunk(2, dim=1)
    return x + a * torch.sigmoid(g), h, gates


def _exact(given: Arguments) -> dict[str, Any]:
    """The inputs in float64, if they are CPU tensors of dtypes that go together."""
    inputs = {name: given[name] for name in Operands._fields}
    dtype = given["x"].dtype
    exact = torch.float64 if dtype == torch.float64 else torch.float32
    assert dtype in (torch.float64, torch.float32, torch.bfloat16)
    for name, tensor in inputs.items():
        if tensor is not None:
            assert tensor.device.type == "cpu"
            assert tensor.layout == torch.strided
            assert len(tensor.shape) == len(FIELDS[name].shape.split())
            expected = {"Image": dtype, "Weight": exact, "Int64": torch.int64}
            assert tensor.dtype == expected[FIELDS[name].dtype]
    return {
        name: tensor.detach().double().requires_grad_() if _is_float(tensor) else tensor
        for name, tensor in inputs.items()
    }


def _is_float(value: Any) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point()


def _numbers(given: Arguments) -> tuple[int, int, int, int, int, float]:
    names = ("pad_top", "pad_left", *PLACE, "keep_from", "scale")
    top, left, layer, first_image, least, scale = (given[name] for name in names)
    kh, kw = given["conv_in"].shape[2:]
    assert 0 <= first_image < 2**31
    assert 0 <= top < kh
    assert 0 <= left < kw
    return top, left, layer, first_image, least, scale


def _with_gradients(y: Tensor, inputs: Arguments, given: Arguments) -> list[Tensor]:
    """The gradients of the sum of y by the inputs that asked for one."""
    names = [n for n in Operands._fields if _is_float(given[n]) and given[n].requires_grad]
    if not names:
        return []
    return list(torch.autograd.grad(y.sum(), [inputs[name] for name in names]))


def _expected_public(given: Arguments) -> list[Tensor]:
    torch.manual_seed(0)
    inputs = _exact(given)
    y = call({**given, **inputs}, impl="reference")
    return [y.detach(), *_with_gradients(y, inputs, given)]


def _expected_forward(given: Arguments) -> list[Tensor]:
    results = _block(_exact(given), _numbers(given))
    return [t.detach() for t in (results if given["h"] is not None else results[:1])]


def _expected_backward(given: Arguments) -> list[Tensor]:
    inputs = _exact(given)
    saved = given["h"].detach(), given["gates"].detach()
    y, _, _ = _block(inputs, _numbers(given), saved)
    for value in (*saved, given["grad_y"]):
        assert value.dtype == given["x"].dtype
    written = (name for name in GRADIENTS if given.get(name) is not None)
    present = [inputs[name.removeprefix("grad_")] for name in written]
    return list(torch.autograd.grad(y, present, given["grad_y"].detach().double()))


def _of_extension(direction: str, written: Sequence[str], given: Arguments) -> list[Tensor]:
    tensors = {name: value for name, value in given.items() if name not in SETTINGS}
    settings = {name: given[name] for name in SETTINGS}
    getattr(EXTENSION, f"gated_resnet_{direction}")(tensors, **settings)
    return [given[name].detach() for name in written if given.get(name) is not None]


def _public(given: Arguments) -> list[Tensor]:
    torch.manual_seed(0)
    y = call(given, impl=given["impl"])
    return [y.detach(), *_with_gradients(y, given, given)]


def _settings_of_extension() -> Arguments:
    settings = Settings("none", DROPOUT)
    numbers = (1, 1, 3, 0, settings.keep_from, settings.scale, 1, "auto")
    return dict(zip(SETTINGS, numbers, strict=True))


def _saved() -> Arguments:
    """y, h, gates and grad_y of the right values."""
    inputs = _base()
    case = {**inputs, **_settings_of_extension()}
    y, h, gates = (t.detach().float() for t in _block(_exact(case), _numbers(case)))
    last = (t.contiguous(memory_format=torch.channels_last) for t in (y, h, gates, y * 0.5))
    return dict(zip(("y", "h", "gates", "grad_y"), map(guarded, last), strict=True))


def _forward_arguments() -> Arguments:
    saved = _saved()
    outputs = {name: guarded(torch.full_like(saved[name], torch.nan)) for name in OUTPUTS}
    return {**_base(), **outputs, **_settings_of_extension()}


def _backward_arguments(frozen: bool) -> Arguments:
    """frozen: without the gradients of weights."""
    inputs, saved = _base(), _saved()
    del saved["y"]
    every = (name.removeprefix("grad_") for name in GRADIENTS)
    names = [name for name in every if not (frozen and FIELDS[name].of_weights)]
    grads = {f"grad_{n}": guarded(torch.full_like(inputs[n], torch.nan)) for n in names}
    return {**inputs, **saved, **grads, **_settings_of_extension()}


def _public_arguments() -> Arguments:
    place = {"layer": 3, "first_image": 0}
    return {**_base(), "shift": "down", "dropout": DROPOUT, **place, "impl": "native"}


OUTPUTS = ("y", "h", "gates")
TARGETS = [
    Target(
        *("_C.gated_resnet_forward", _forward_arguments),
        *(partial(_of_extension, "forward", OUTPUTS), _expected_forward, VALUES, True),
    ),
    *[
        Target(
            *(f"_C.gated_resnet_backward{words}", partial(_backward_arguments, frozen)),
            *(partial(_of_extension, "backward", GRADIENTS), _expected_backward, VALUES, True),
        )
        for words, frozen in (("", False), (", frozen", True))
    ],
    Target(*("functional.gated_resnet", _public_arguments, _public), *(_expected_public, VALUES)),
]


@pytest.mark.parametrize("target", TARGETS, ids=[target.name for target in TARGETS])
def test_a_wrong_call_raises_or_answers_rightly(target: Target) -> None:
    run(target, examples=120)
