"""The logistic mixture's likelihood, for wrong calls."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import Tensor

from dsmooth import _extension
from dsmooth.functional import logistic_mixture_log_prob
from tests.faults.harness import Arguments, Odd, Target, guarded, run

REFUSED: Odd = {
    "likelihood": ["gaussian", "bogus", "", 3],
    "atoms": ["x", (0,)],
    "smoothing_scale": ["x"],
    "threads": [2**40, "x"],
    "instruction_set": ["sse9", "", 3],
    "impl": ["triton", "bogus"],
}
ACCEPTED: Odd = {
    "likelihood": ["continuous"],
    "smoothing_scale": [0.5, -1.0, float("nan"), float("inf")],
    "threads": [0, -3, 2, 10**9],
    "instruction_set": ["generic"],
    "impl": ["native", "reference"],
}


def inputs(channels: int) -> Arguments:
    generator = torch.Generator().manual_seed(channels)
    levels = torch.randint(0, 256, (2, channels, 4, 5), generator=generator)
    levels[0, :, 0, :2] = torch.tensor([0, 255])
    n_params = 3 * 2 + 256 if channels == 1 else 10 * 2
    params = torch.randn(2, n_params, 4, 5, generator=generator)
    return {
        "x": guarded(levels / 127.5 - 1),
        "params": guarded(params),
        "likelihood": "discretized",
        "atoms": channels == 1,
        "smoothing_scale": 0.0,
    }


def empty(*shape: int) -> Tensor:
    return guarded(torch.full(shape, torch.nan))


def forward_arguments(channels: int) -> Arguments:
    written = {"log_prob": empty(2, 4, 5), "state": empty(2, 4, 4, 5)}
    return inputs(channels) | written | {"threads": 1, "instruction_set": "auto"}


def backward_arguments(channels: int) -> Arguments:
    given = forward_arguments(channels)
    _extension.extension().logistic_mixture(**given)
    given |= {f"grad_{name}": empty(*given[name].shape) for name in ("x", "params")}
    del given["log_prob"]
    return given | {"grad": guarded(torch.linspace(-1, 1, 40).view(2, 4, 5))}


def of_extension(given: Arguments) -> list[Tensor]:
    _extension.extension().logistic_mixture(**given)
    return []


def public_arguments(channels: int) -> Arguments:
    return inputs(channels) | {"atoms": "all" if channels == 1 else (), "impl": "native"}


def public(given: Arguments) -> list[Tensor]:
    """The values and the gradients of their sum by those of x and params that ask for one."""
    value = logistic_mixture_log_prob(**given)
    wanted = [given[name] for name in ("x", "params") if given[name].requires_grad]
    return [value.detach(), *(torch.autograd.grad(value.sum(), wanted) if wanted else ())]


FUNCTIONS = [
    ("functional.logistic_mixture_log_prob", public_arguments, public, {"impl": "reference"}),
    ("_C.logistic_mixture, forward", forward_arguments, of_extension, {"threads": 1}),
    ("_C.logistic_mixture, backward", backward_arguments, of_extension, {"threads": 1}),
]
TARGETS = [
    Target(
        f"{name}, C = {channels}", partial(arguments, channels), call, REFUSED, ACCEPTED, plain,
        is_raw=call is of_extension,
    )
    for channels in (1, 3)
    for name, arguments, call, plain in FUNCTIONS
]  # fmt: skip


@pytest.mark.parametrize("target", TARGETS, ids=[target.name for target in TARGETS])
def test_a_wrong_call_raises_or_answers_rightly(target: Target) -> None:
    run(target)


def test_results_of_the_other_direction_are_refused() -> None:
    run_native = _extension.extension().logistic_mixture
    forward, backward = forward_arguments(1), backward_arguments(1)
    for name in ("grad_x", "grad_params"):
        with pytest.raises(ValueError, match=f"{name} must be None without grad, got a tensor"):
            run_native(**forward, **{name: backward[name]})
    with pytest.raises(ValueError, match="log_prob must be None with grad, got a tensor"):
        run_native(**backward, log_prob=forward["log_prob"])
