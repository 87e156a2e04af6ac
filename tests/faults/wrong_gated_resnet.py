"""The gated block, for wrong calls."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import Tensor

from dsmooth import _extension
from dsmooth.functional.gated_resnet_native import forward_op
from dsmooth.functional.gated_resnet_operands import FIELDS, Operands
from tests.faults.harness import Arguments, Odd, Target, guarded, run
from tests.helpers.gated_cases import call, make_case

CASE = make_case("down", (2, 3, 4), 3, (2, 1), 0.5, gains=True, image_bias=True)
NUMBERS: Arguments = {
    "pad_top": 1,
    "pad_left": 1,
    "layer": 3,
    "first_image": 0,
    "keep_from": CASE.settings.keep_from,
    "scale": CASE.settings.scale,
    "threads": 1,
    "instruction_set": "auto",
}
REFUSED: Odd = {
    "pad_top": [-1, 2, 2**20, 2**40],
    "pad_left": [-1, 3, 2**20, 2**40],
    "layer": [-1, 2**70, 1.5, "x"],
    "first_image": [-1, 2**31, 2**70, 1.5],
    "keep_from": [2**40, 0.5],
    "scale": ["x"],
    "threads": [2**40],
    "instruction_set": ["sse9", "", 3],
}
ACCEPTED: Odd = {
    "pad_top": [0],
    "pad_left": [0],
    "layer": [2**31],
    "first_image": [3],
    "keep_from": [-1, 0, 1],
    "scale": [0.0, float("nan")],
    "threads": [0, -3, 2, 10**9],
    "instruction_set": ["generic"],
}
PUBLIC: Odd = {
    "shift": ["none", "bogus", "", 3],
    "dropout": [1.0, -0.5, 2.0, float("nan"), "x"],
    "layer": REFUSED["layer"],
    "first_image": REFUSED["first_image"],
    "impl": ["triton", "bogus"],
}
EITHER: Odd = {"shift": ["down_right"], "dropout": [0.0, 0.25], "impl": ["native", "reference"]}


def inputs() -> Arguments:
    return {name: guarded(t) for name, t in CASE.operands(torch.float32)._asdict().items()}


def saved() -> dict[str, Tensor]:
    results = forward_op(*CASE.operands(torch.float32), *CASE.settings, True)
    return dict(zip(("y", "h", "gates"), results, strict=True))


def unwritten(like: Tensor) -> Tensor:
    return guarded(torch.full_like(like, torch.nan))


def forward_arguments() -> Arguments:
    return inputs() | {name: unwritten(t) for name, t in saved().items()} | NUMBERS


def backward_arguments(frozen: bool) -> Arguments:
    """frozen: without the gradients of weights."""
    given, values = inputs(), saved()
    values["grad_y"] = 0.5 * values.pop("y")
    fields = [(name, FIELDS[name]) for name in Operands._fields]
    named = [name for name, f in fields if f.gradient and not (frozen and f.is_parameter)]
    grads = {f"grad_{name}": unwritten(given[name]) for name in named}
    return given | {name: guarded(t) for name, t in values.items()} | grads | NUMBERS


def of_extension(direction: str, given: Arguments) -> list[Tensor]:
    tensors = {name: value for name, value in given.items() if name not in NUMBERS}
    numbers = {name: given[name] for name in NUMBERS}
    getattr(_extension.extension(), f"gated_resnet_{direction}")(tensors, **numbers)
    return []


def public_arguments() -> Arguments:
    return inputs() | CASE.settings._asdict() | {"impl": "native"}


def public(given: Arguments) -> list[Tensor]:
    """y and the gradients of its sum by the inputs that ask for one."""
    torch.manual_seed(0)
    y = call(given, impl=given["impl"])
    wanted = [t for name in Operands._fields if (t := given[name]) is not None and t.requires_grad]
    return [y.detach(), *(torch.autograd.grad(y.sum(), wanted) if wanted else ())]


of_values = partial(Target, refused=REFUSED, accepted=ACCEPTED, plain={"threads": 1}, is_raw=True)
backward = partial(of_extension, "backward")
TARGETS = [
    of_values("_C.gated_resnet_forward", forward_arguments, partial(of_extension, "forward")),
    of_values("_C.gated_resnet_backward", partial(backward_arguments, False), backward),
    of_values("_C.gated_resnet_backward, frozen", partial(backward_arguments, True), backward),
    Target(
        "functional.gated_resnet", public_arguments, public, PUBLIC, EITHER, {"impl": "reference"}
    ),
]


@pytest.mark.parametrize("target", TARGETS, ids=[target.name for target in TARGETS])
def test_a_wrong_call_raises_or_answers_rightly(target: Target) -> None:
    run(target)
