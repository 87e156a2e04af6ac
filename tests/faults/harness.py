"""Wrong calls of native functions, drawn by hypothesis and made in a process of their own.

A call raises, or gives the right answer, and touches nothing outside its tensors; it never ends
the process. A file wrong_*.py of this folder has a test of its functions that calls `run`;
test_wrong_calls.py runs each of these files.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from hypothesis import Phase, given, seed, settings
from hypothesis import strategies as st
from torch import Tensor

from dsmooth import _extension

USED = os.environ.get("DSMOOTH_TEST_EXTENSION")  # see conftest.py
assert USED is None or _extension.extension().__file__ == USED
MARGIN = 32
CANARY = 7
SEED = int(os.environ.get("DSMOOTH_WRONG_CALLS_SEED", "1"))
PART = int(os.environ.get("DSMOOTH_WRONG_CALLS_PART", "1"))  # one call of so many is made
NOTE = "call.txt"  # the call that is being made, in the folder of the process
DTYPES = [
    *(torch.float16, torch.bfloat16, torch.float32, torch.float64),
    *(torch.int32, torch.int64, torch.bool, torch.complex64),
]
Arguments = dict[str, Any]
Odd = dict[str, list[Any]]


@dataclass(frozen=True)
class Target:
    """A function to call wrongly.

    arguments: fresh ones, by name, with which `call` succeeds. call: returns tensors; it may
    also write arguments. refused: odd values of arguments that are not tensors; accepted: such
    as need not be refused. plain: arguments with which the same call says what is right. free: a
    tensor of any number of images. is_raw: the function reads memory itself and converts nothing.
    """

    name: str  # of the function, then a comma or a space and what sets this target apart
    arguments: Callable[[], Arguments]
    call: Callable[[Arguments], Sequence[Tensor]]
    refused: Odd
    accepted: Odd
    plain: Arguments = field(default_factory=dict)
    free: str | None = None
    is_raw: bool = False


def guarded(tensor: Tensor) -> Tensor:
    """Copy of a dense tensor, in the same memory order, between canaries."""
    whole = torch.full((tensor.numel() + 2 * MARGIN,), CANARY, dtype=tensor.dtype)
    inside = whole.as_strided(tensor.shape, tensor.stride(), MARGIN)
    return inside.copy_(tensor)


def assert_untouched(tensor: Tensor) -> None:
    whole = torch.empty(0, dtype=tensor.dtype).set_(tensor.untyped_storage())
    for edge in (whole[:MARGIN], whole[-MARGIN:]):
        assert torch.equal(edge, torch.full_like(edge, CANARY))


def _without_memory(tensor: Tensor) -> Tensor:
    tensor = tensor.detach().clone()
    tensor.untyped_storage().resize_(0)
    return tensor


def _misaligned(tensor: Tensor) -> Tensor:
    """In memory that begins with the second byte of an element."""
    whole = bytearray(tensor.numel() * tensor.element_size() + 1)
    return torch.frombuffer(whole, dtype=tensor.dtype, offset=1).view(tensor.shape)


def _with_extent(tensor: Tensor, dim: int, extent: int) -> Tensor:
    shape = list(tensor.shape)
    shape[dim % max(tensor.ndim, 1)] = extent
    return torch.ones(shape, dtype=tensor.dtype)


@st.composite
def wrong_tensors(draw: st.DrawFn, tensor: Tensor, is_raw: bool) -> tuple[str, Any]:
    """Words, and a tensor of another shape, dtype, device or memory order, or no tensor."""
    dim = draw(st.integers(0, max(tensor.ndim - 1, 0)))
    changes: dict[str, Callable[[], Any]] = {
        "None": lambda: None,
        "a number": lambda: 2.5,
        "a string": lambda: "x",
        "a list": lambda: [1.0, 2.0],
        "empty": lambda: tensor.new_empty(0),
        "one element": lambda: tensor.new_ones(1),
        "no dimensions": lambda: tensor.new_ones(()),
        "a dimension more": lambda: tensor.unsqueeze(dim),
        "flat": lambda: tensor.flatten(),
        "meta": lambda: tensor.to("meta"),
        "sparse": lambda: tensor.to_sparse(),
        "every second number": lambda: torch.stack([tensor, tensor], dim=-1)[..., 0],
        "reversed dimensions": lambda: tensor.permute(tuple(reversed(range(tensor.ndim)))),
        "a negative view": lambda: torch._neg_view(tensor),
        "requires grad": lambda: tensor.clone().requires_grad_(),
        "a parameter": lambda: torch.nn.Parameter(tensor.clone()),
    }
    if is_raw:
        changes["no memory"] = lambda: _without_memory(tensor)
        changes["misaligned"] = lambda: _misaligned(tensor)
    if tensor.ndim > 0:
        extent = tensor.shape[dim]
        changes |= {
            f"dimension {dim} of 0": lambda: _with_extent(tensor, dim, 0),
            f"dimension {dim} longer": lambda: _with_extent(tensor, dim, extent + 1),
            f"dimension {dim} shorter": lambda: _with_extent(tensor, dim, extent - 1),
            f"dimension {dim} of 1": lambda: _with_extent(tensor, dim, 1),
            f"dimension {dim} repeated": lambda: tensor.narrow(dim, 0, 1).expand(tensor.shape),
            "a dimension less": lambda: tensor.select(dim, 0),
            "huge and empty": lambda: tensor.new_empty((0, *(2**15,) * (tensor.ndim - 1))),
        }
    if tensor.ndim >= 2:
        changes["transposed memory"] = lambda: tensor.mT.contiguous().mT
    if tensor.ndim == 4:
        changes["channels_last"] = lambda: tensor.contiguous(memory_format=torch.channels_last)
        changes["contiguous"] = lambda: tensor.contiguous()
    changes |= {str(dtype): lambda dtype=dtype: tensor.to(dtype) for dtype in DTYPES}
    word = draw(st.sampled_from(sorted(changes)))
    try:
        return word, changes[word]()
    except (RuntimeError, IndexError):  # a change that such a tensor does not have
        return "None", None


@dataclass(repr=False)
class WrongCall:
    """Arguments, one or two of which are not as they should be, and what was changed in words."""

    words: str
    arguments: Arguments
    only_one: bool = True  # argument is wrong
    guards: Sequence[Tensor] = ()

    def __repr__(self) -> str:
        return self.words


@st.composite
def wrong_calls(draw: st.DrawFn, target: Target) -> WrongCall:
    arguments = target.arguments()
    words = []
    names = st.lists(st.sampled_from(sorted(arguments)), min_size=1, max_size=2, unique=True)
    chosen = draw(names)
    is_raw = target.is_raw and len(chosen) == 1  # a second fault has the tensor printed by torch
    tensors = [value for value in arguments.values() if isinstance(value, Tensor)]
    for name in chosen:
        value = arguments[name]
        if is_raw and isinstance(value, Tensor) and draw(st.integers(0, 9)) == 0:
            word, arguments[name] = "another's memory", draw(st.sampled_from(tensors))
        elif isinstance(value, Tensor):
            word, arguments[name] = draw(wrong_tensors(value, is_raw))
        else:
            odd = [*target.refused.get(name, []), *target.accepted.get(name, []), None]
            arguments[name] = draw(st.sampled_from(odd))
            word = repr(arguments[name])
        words.append(f"{name}: {word}")
    return WrongCall(f"{target.name} with {', '.join(words)}", arguments, len(chosen) == 1, tensors)


def plain_of(target: Target, arguments: Arguments, only_one: bool) -> Arguments | None:
    """The same arguments in memory of their own, of the dtypes and memory orders of right ones.

    None if one has to be refused: not such a tensor, or with `only_one` of another shape.
    """
    plain = target.arguments()
    for name, value in arguments.items():
        right = plain[name]
        plain[name] = value
        if value is None or not isinstance(right, Tensor):
            continue
        if not isinstance(value, Tensor) or value.layout != torch.strided or value.is_meta:
            return None
        kind = (lambda t: t.dtype) if target.is_raw else Tensor.is_floating_point
        fits = value.shape == right.shape
        is_lost = value.numel() > 0 and value.untyped_storage().nbytes() == 0
        if kind(value) != kind(right) or is_lost or (only_one and not fits and name != target.free):
            return None
        copy = right if fits else right.new_empty(value.shape)
        plain[name] = copy.copy_(value.detach()).requires_grad_(value.requires_grad)
    return plain | target.plain


def judge(target: Target, arguments: Arguments, only_one: bool = True) -> bool:
    """Whether the call raised; asserts that its answer is right if it did not.

    only_one: at most one argument is wrong.
    """
    plain = plain_of(target, arguments, only_one)
    try:
        got = target.call(arguments)
    except (AssertionError, SystemError):
        raise
    except Exception:  # refused, by whichever error: memory faults end the process instead
        return True
    if plain is None:
        devices = {str(getattr(value, "device", value)) for value in arguments.values()}
        assert not target.is_raw, "an answer to a wrong tensor"
        assert "meta" in devices
        assert all(t.is_meta for t in got)  # no values from no values
        return False
    # Memory that is read keeps its values, and what is written has the right ones.
    names = [name for name, value in plain.items() if isinstance(value, Tensor)]
    expected = [*target.call(plain), *(plain[name].detach() for name in names)]
    results = [*got, *(arguments[name].detach() for name in names)]
    for a, b in zip(results, expected, strict=True):
        assert a.device == b.device
        error = max(2e-4, 4 * torch.finfo(a.dtype).eps) if a.is_floating_point() else 0
        torch.testing.assert_close(
            a.double(), b.double(), rtol=error, atol=error, equal_nan=True, check_stride=False
        )
    return False


def settings_of(examples: int) -> settings:
    """Settings of so many examples, or a PART of them, which SEED decides."""
    return settings(
        max_examples=examples // PART,
        database=None,
        derandomize=False,
        deadline=None,
        phases=[Phase.generate, Phase.shrink],
    )


def run(target: Target, examples: int) -> None:
    """Make `examples` wrong calls, or a PART of them; the file NOTE describes the next one."""
    plain = target.arguments()
    assert not judge(target, plain), f"{target.name} refuses right arguments"
    for value in plain.values():
        if isinstance(value, Tensor):
            assert_untouched(value)
    for name in plain.keys() & target.refused.keys():
        for value in target.refused[name]:
            assert judge(target, target.arguments() | {name: value}), f"{name}: {value!r}"

    @seed(SEED)
    @settings_of(examples)
    @given(wrong_calls(target))
    def check(wrong: WrongCall) -> None:
        Path(NOTE).write_text(wrong.words)
        judge(target, wrong.arguments, wrong.only_one)
        for guard in wrong.guards:
            assert_untouched(guard)

    check()
