"""The logistic mixture's likelihood, for wrong calls."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from hypothesis import reject
from torch import Tensor

from dsmooth import _extension
from dsmooth.functional import logistic_mixture_log_prob
from dsmooth.functional.logistic_mixture import logistic_mixture_log_prob_ref
from tests.faults.harness import Arguments, Target, guarded, run

ATOMS = (0, 255)
VALUES: dict[str, list[Any]] = {
    "likelihood": ["continuous", "gaussian", "bogus", "", 3],
    "atoms": [(), (0,), (0, 0), (256, 1), (-1, 2), (0, 1, 2), "x", (2**70, 0), tuple(range(256))],
    "smoothing_scale": [0.5, -1.0, float("nan"), float("inf"), "x"],
    "impl": ["native", "reference", "triton", "bogus"],
    "threads": [0, -3, 2, 10**9, 2**40, "x"],
    "instruction_set": ["generic", "sse9", "", 3],
}
SETTINGS = {"threads": 1, "instruction_set": "auto"}
MIXTURE = ("likelihood", "atoms", "smoothing_scale")


def _base(channels: int) -> Arguments:
    generator = torch.Generator().manual_seed(channels)
    levels = torch.randint(0, 256, (2, channels, 4, 5), generator=generator)
    levels[0, :, 0, :2] = torch.tensor([0, 255])
    params = torch.randn(2, (3 if channels == 1 else 10) * 2 + 2, 4, 5, generator=generator)
    x = levels / 127.5 - 1
    return {
        "x": guarded(x),
        "params": guarded(params),
        "likelihood": "discretized",
        "atoms": ATOMS,
        "smoothing_scale": 0.0,
    }


def _log_prob(given: Arguments) -> tuple[Tensor, list[Tensor]]:
    """The reference in float64, and its leaves x and params."""
    for name in ("x", "params"):
        assert given[name].layout == torch.strided
        assert given[name].device.type == "cpu"
    leaves = [given[name].detach().double().requires_grad_() for name in ("x", "params")]
    rest = {name: given[name] for name in MIXTURE}
    return logistic_mixture_log_prob_ref(*leaves, **rest), leaves


def _gradients(value: Tensor, leaves: list[Tensor], given: Arguments) -> list[Tensor]:
    """By those of x and params that asked for one."""
    wanted = [
        leaf
        for name, leaf in zip(("x", "params"), leaves, strict=True)
        if given[name].requires_grad
    ]
    return list(torch.autograd.grad(value.sum(), wanted)) if wanted else []


def _expected(given: Arguments) -> list[Tensor]:
    value, leaves = _log_prob(given)
    return [value.detach(), *_gradients(value, leaves, given)]


def _public(given: Arguments) -> list[Tensor]:
    value = logistic_mixture_log_prob(**given)
    return [value.detach(), *_gradients(value, [given["x"], given["params"]], given)]


def _expected_backward(given: Arguments) -> list[Tensor]:
    value, leaves = _log_prob(given)
    assert given["grad"].shape == value.shape
    # Other numbers in the state give other gradients, which nothing else computes.
    inputs = [given[name] for name in ("x", "params", *MIXTURE)]
    fresh = torch.ops.dsmooth.logistic_mixture(*inputs)[1].detach()
    if given["state"].shape != fresh.shape or not torch.equal(given["state"], fresh):
        reject()
    grads = torch.autograd.grad(value, leaves, given["grad"].detach().double())
    written = (given["grad_x"], given["grad_params"])
    return [grad for grad, to in zip(grads, written, strict=True) if to is not None]


def _of_extension(given: Arguments) -> list[Tensor]:
    _extension.extension().logistic_mixture(**given)
    written = (given.get(name) for name in ("log_prob", "grad_x", "grad_params"))
    return [tensor.detach() for tensor in written if tensor is not None]


def _expected_of_extension(given: Arguments) -> list[Tensor]:
    """The extension converts nothing."""
    tensors = [value for value in given.values() if isinstance(value, Tensor)]
    assert len({tensor.dtype for tensor in tensors}) == 1
    assert given["x"].dtype in (torch.float32, torch.float64)
    if "grad" in given:
        return _expected_backward(given)
    value, _ = _log_prob(given)
    assert given["log_prob"].shape == value.shape
    return [value.detach()]


def _empty(*shape: int) -> Tensor:
    return guarded(torch.full(shape, torch.nan))


def _forward_arguments(channels: int) -> Arguments:
    written = {"log_prob": _empty(2, 4, 5), "state": _empty(2, 4, 4, 5)}
    return _base(channels) | written | SETTINGS


def _backward_arguments(channels: int) -> Arguments:
    given = _base(channels)
    _, state = torch.ops.dsmooth.logistic_mixture(*given.values())
    read = {"grad": guarded(torch.linspace(-1, 1, 40).view(2, 4, 5)), "state": guarded(state)}
    written = {f"grad_{name}": _empty(*given[name].shape) for name in ("x", "params")}
    return given | read | written | SETTINGS


def _public_arguments(channels: int) -> Arguments:
    return {**_base(channels), "impl": "native"}


OF_EXTENSION = (_of_extension, _expected_of_extension, VALUES, True)
FUNCTIONS = {
    "functional.logistic_mixture_log_prob": (_public_arguments, _public, _expected, VALUES),
    "_C.logistic_mixture, forward": (_forward_arguments, *OF_EXTENSION),
    "_C.logistic_mixture, backward": (_backward_arguments, *OF_EXTENSION),
}
TARGETS = [
    Target(f"{name}, C = {channels}", partial(arguments, channels), *rest)
    for channels in (1, 3)
    for name, (arguments, *rest) in FUNCTIONS.items()
]


@pytest.mark.parametrize("target", TARGETS, ids=[target.name for target in TARGETS])
def test_a_wrong_call_raises_or_answers_rightly(target: Target) -> None:
    run(target, examples=150)


def test_results_of_the_other_direction_are_refused() -> None:
    run_native = _extension.extension().logistic_mixture
    forward, backward = _forward_arguments(1), _backward_arguments(1)
    for name in ("grad_x", "grad_params"):
        with pytest.raises(ValueError, match=f"{name} must be None without grad, got a tensor"):
            run_native(**forward, **{name: backward[name]})
    with pytest.raises(ValueError, match="log_prob must be None with grad, got a tensor"):
        run_native(**backward, log_prob=forward["log_prob"])
