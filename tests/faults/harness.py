"""Wrong calls of native functions, each made with one wrong argument.

A call raises, or gives the right answer, and touches nothing outside its tensors; it never ends
the process. A file wrong_*.py of this folder has a test of its functions that calls `run`;
test_wrong_calls.py runs each of these files in a process of its own.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dsmooth import _extension

USED = os.environ.get("DSMOOTH_TEST_EXTENSION")  # see conftest.py
assert USED is None or _extension.extension().__file__ == USED
MARGIN = 32
CANARY = 7
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


def assert_untouched(arguments: Arguments) -> None:
    for tensor in (value for value in arguments.values() if isinstance(value, Tensor)):
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
    shape[dim] = extent
    return torch.ones(shape, dtype=tensor.dtype)


def wrong_tensors(tensor: Tensor, is_raw: bool) -> Iterator[tuple[str, Any]]:
    """Words, and a tensor of another shape, dtype, device or memory order, or no tensor."""
    changes: dict[str, Callable[[], Any]] = {
        "None": lambda: None,
        "a number": lambda: 2.5,
        "a string": lambda: "x",
        "a list": lambda: [1.0, 2.0],
        "empty": lambda: tensor.new_empty(0),
        "one element": lambda: tensor.new_ones(1),
        "no dimensions": lambda: tensor.new_ones(()),
        "a dimension more": lambda: tensor.unsqueeze(0),
        "flat": lambda: tensor.flatten(),
        "meta": lambda: tensor.to("meta"),
        "sparse": lambda: tensor.to_sparse(),
        "every second number": lambda: torch.stack([tensor, tensor], dim=-1)[..., 0],
        "reversed dimensions": lambda: tensor.permute(tuple(reversed(range(tensor.ndim)))),
        "a negative view": lambda: torch._neg_view(tensor),
        "requires grad": lambda: tensor.clone().requires_grad_(),
        "a parameter": lambda: torch.nn.Parameter(tensor.clone()),
        "huge and empty": lambda: tensor.new_empty((0, *(2**15,) * (tensor.ndim - 1))),
        "transposed memory": lambda: tensor.transpose(-1, -2).contiguous().transpose(-1, -2),
        "channels_last": lambda: tensor.contiguous(memory_format=torch.channels_last),
        "contiguous": lambda: tensor.contiguous(),
    }
    if is_raw:
        changes["no memory"] = lambda: _without_memory(tensor)
        changes["misaligned"] = lambda: _misaligned(tensor)
    for dim, extent in enumerate(tensor.shape):
        changes |= {
            f"dimension {dim} of {other}": lambda d=dim, n=other: _with_extent(tensor, d, n)
            for other in {0, 1, extent - 1, extent + 1}
        }
        changes |= {
            f"dimension {dim} repeated": lambda d=dim: tensor.narrow(d, 0, 1).expand(tensor.shape),
            f"without dimension {dim}": lambda d=dim: tensor.select(d, 0),
        }
    changes |= {str(dtype): lambda dtype=dtype: tensor.to(dtype) for dtype in DTYPES}
    for word, change in changes.items():
        try:
            yield word, change()
        except (RuntimeError, IndexError):  # a change that such a tensor does not have
            continue


def wrong_calls(target: Target) -> Iterator[tuple[str, str, Any]]:
    """Words, the name of an argument, and a wrong value of it."""
    arguments = target.arguments()
    for name, right in arguments.items():
        if isinstance(right, Tensor):
            wrong = [*wrong_tensors(right, target.is_raw)]
            if target.is_raw:
                others = (n for n, t in arguments.items() if isinstance(t, Tensor) and n != name)
                wrong += [(f"memory of {other}", other) for other in others]
        else:
            wrong = [(repr(value), value) for value in (*target.accepted.get(name, []), None)]
        for word, value in wrong:
            yield f"{target.name} with {name}: {word}", name, value


def plain_of(target: Target, arguments: Arguments) -> Arguments | None:
    """The same arguments in memory of their own, of the dtypes and memory orders of right ones.

    None if one has to be refused: not such a tensor, or of another shape.
    """
    plain = target.arguments()
    for name, value in arguments.items():
        right = plain[name]
        plain[name] = value
        if value is None or not isinstance(right, Tensor):
            continue
        if not isinstance(value, Tensor) or value.layout != torch.strided or value.is_meta:
            return None
        if value.is_complex():
            return None
        kind = (lambda t: t.dtype) if target.is_raw else Tensor.is_floating_point
        fits = value.shape == right.shape
        is_lost = value.numel() > 0 and value.untyped_storage().nbytes() == 0
        if kind(value) != kind(right) or is_lost or not (fits or name == target.free):
            return None
        copy = right if fits else right.new_empty(value.shape)
        plain[name] = copy.copy_(value.detach()).requires_grad_(value.requires_grad)
    return plain | target.plain


def judge(target: Target, arguments: Arguments) -> bool:
    """Whether the call raised; asserts that its answer is right if it did not."""
    plain = plain_of(target, arguments)
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


def run(target: Target) -> None:
    """Make the wrong calls, or a PART of them; the file NOTE describes the next one.

    Those that must be refused are all made.
    """
    plain = target.arguments()
    assert not judge(target, plain), f"{target.name} refuses right arguments"
    assert_untouched(plain)
    for name in plain.keys() & target.refused.keys():
        for value in target.refused[name]:
            assert judge(target, target.arguments() | {name: value}), f"{name}: {value!r}"
    for words, name, value in islice(wrong_calls(target), 0, None, PART):
        Path(NOTE).write_text(words)
        arguments = target.arguments()
        own = dict(arguments)
        if isinstance(value, str) and " memory of " in words:
            value = arguments[value]
        arguments[name] = value
        judge(target, arguments)
        assert_untouched(own)
