"""No wrong call of a native function ends the process, and none answers wrongly.

Each call has one wrong argument. It raises, or gives the right answer, and touches nothing outside
its tensors. With -s each call is shown before it is made. `csrc/tests/run.sh BUILD python -m ''
tests/faults/test_wrong_calls.py` makes all of them with an extension under AddressSanitizer.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, partial
from itertools import islice
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from dsmooth import _extension
from dsmooth.functional.gated_resnet_op import forward_op
from dsmooth.functional.gated_resnet_operands import FIELDS
from dsmooth.sampling.program import Program
from tests.helpers.gated_cases import make_case, needs_extension
from tests.helpers.networks import BYTES, network

MARGIN = 32
CANARY = 7
DTYPES = [
    *(torch.float16, torch.bfloat16, torch.float32, torch.float64),
    *(torch.int32, torch.int64, torch.bool, torch.complex64),
]


def guarded(tensor: Tensor) -> Tensor:
    """Copy of a dense tensor, in the same memory order, between canaries."""
    whole = torch.full((tensor.numel() + 2 * MARGIN,), CANARY, dtype=tensor.dtype)
    inside = whole.as_strided(tensor.shape, tensor.stride(), MARGIN)
    return inside.copy_(tensor)


def unwritten(*shape: int) -> Tensor:
    return guarded(torch.full(shape, torch.nan))


def assert_untouched(arguments: Mapping[str, Any]) -> None:
    for tensor in (value for value in arguments.values() if isinstance(value, Tensor)):
        whole = torch.empty(0, dtype=tensor.dtype).set_(tensor.untyped_storage())
        for edge in (whole[:MARGIN], whole[-MARGIN:]):
            assert torch.equal(edge, torch.full_like(edge, CANARY))


def without_memory(tensor: Tensor) -> Tensor:
    tensor = tensor.detach().clone()
    tensor.untyped_storage().resize_(0)
    return tensor


def misaligned(tensor: Tensor) -> Tensor:
    """In memory that begins with the second byte of an element."""
    whole = bytearray(tensor.numel() * tensor.element_size() + 1)
    return torch.frombuffer(whole, dtype=tensor.dtype, offset=1).view(tensor.shape)


def wrong_tensors(tensor: Tensor) -> Iterator[tuple[str, Any]]:
    """Words, and a tensor of another shape, dtype, device or memory order, or no tensor."""
    changes: dict[str, Callable[[], Any]] = {
        "None": lambda: None,
        "a number": lambda: 2.5,
        "a list": lambda: [1.0, 2.0],
        "empty": lambda: tensor.new_empty(0),
        "no dimensions": lambda: tensor.new_ones(()),
        "a dimension more": lambda: tensor.unsqueeze(0),
        "flat": lambda: tensor.flatten(),
        "meta": lambda: tensor.to("meta"),
        "sparse": lambda: tensor.to_sparse(),
        "every second number": lambda: torch.stack([tensor, tensor], dim=-1)[..., 0],
        "reversed dimensions": lambda: tensor.permute(tuple(reversed(range(tensor.ndim)))),
        "a negative view": lambda: torch._neg_view(tensor),
        "requires grad": lambda: tensor.clone().requires_grad_(),
        "huge and empty": lambda: tensor.new_empty((0, *(2**15,) * (tensor.ndim - 1))),
        "transposed memory": lambda: tensor.transpose(-1, -2).contiguous().transpose(-1, -2),
        "channels_last": lambda: tensor.contiguous(memory_format=torch.channels_last),
        "contiguous": lambda: tensor.contiguous(),
        "no memory": lambda: without_memory(tensor),
        "misaligned": lambda: misaligned(tensor),
    }
    for dim, extent in enumerate(tensor.shape):
        before, after = tensor.shape[:dim], tensor.shape[dim + 1 :]
        changes |= {
            f"dimension {dim} of {n}": lambda s=(*before, n, *after): tensor.new_ones(s)
            for n in {0, 1, extent - 1, extent + 1}
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


pytestmark = needs_extension

USED = os.environ.get("DSMOOTH_TEST_EXTENSION")  # see conftest.py
Arguments = dict[str, Any]
Odd = dict[str, list[Any]]

# Values that each function with such an argument refuses.
REFUSED: Odd = {
    "pad_top": [-1, 2, 2**20, 2**40],
    "pad_left": [-1, 3, 2**20, 2**40],
    "layer": [-1, 2**70, 1.5, "x"],
    "first_image": [-1, 2**31, 2**70, 1.5],
    "keep_from": [2**40, 0.5],
    "scale": ["x"],
    "likelihood": ["gaussian", "bogus", "", 3],
    "atoms": ["x", (0,)],
    "smoothing_scale": ["x"],
    "threads": [2**40, "x"],
    "instruction_set": ["sse9", "", 3],
    "first_index": [-1, 2**64, 0.5],
    "temperature": [0.0, -1.0, float("nan"), float("inf"), "x"],
    "guidance": [-1.0, float("nan"), float("inf"), "x", 0.5],  # these models are not pairs
    "slice": [-1, 2**31, 1.5],
    "height": [-4, 0, 6, 2**15 + 4, 2**31, 8.0, "x"],
    "width": [-4, 0, 6, 2**15 + 4, 2**31, 8.0, "x"],
    "counter": [[], [1, 2, 3], [1, 2, 3, 4, 5], [1, 2, 3, 2**32], [-1, 0, 0, 0], "abcd", 3],
    "key": [(), (1,), (1, 2, 3), (2**32, 0), (0, -1), (1.5, 0), "ab", 3],
}
# Values that need not be refused.
ACCEPTED: Odd = {
    "scale": [0.0, float("nan")],
    "smoothing_scale": [0.5, -1.0, float("nan"), float("inf")],
    "threads": [0, -3, 64, 10**9],
    "temperature": [1e-30, 1e30],
    "slice": [1, 1000, 2**31 - 1],
    "progress": [3, "x", lambda: None],
}


@dataclass(frozen=True)
class Target:
    """A function to call wrongly.

    arguments: fresh ones, by name, with which `call` succeeds. call: returns tensors; it may
    also write arguments. plain: arguments with which the same call says what is right. free: a
    tensor of any number of images.
    """

    name: str  # of the function, then a comma or a space and what sets this target apart
    arguments: Callable[[], Arguments]
    call: Callable[[Arguments], Sequence[Tensor]]
    plain: Arguments = field(default_factory=dict)
    free: str | None = None
    refused: Odd = field(default_factory=lambda: REFUSED)


def wrong_calls(target: Target) -> Iterator[tuple[str, Arguments, Arguments]]:
    """Words, right arguments, and the same but for one of them."""
    for name, right in target.arguments().items():
        if not isinstance(right, Tensor):
            wrong = [(repr(value), value) for value in (*ACCEPTED.get(name, []), None)]
        else:
            wrong = [*wrong_tensors(right)]
        for word, value in wrong:
            own = target.arguments()
            yield f"{name}: {word}", own, own | {name: value}
        for other in (n for n, t in target.arguments().items() if isinstance(t, Tensor)):
            own = target.arguments()
            if isinstance(right, Tensor) and other != name and can_share(right, own[other]):
                place = MARGIN * own[other].itemsize // right.itemsize, right.shape, right.stride()
                shared = right.new_empty(0).set_(own[other].untyped_storage(), *place)
                yield f"{name}: memory of {other}", own, own | {name: shared}


def can_share(tensor: Tensor, other: Tensor) -> bool:
    """Whether the other's memory is large enough, and one of them is written: it is NaN so far."""
    return tensor.nbytes <= other.nbytes and any(t.isnan().any() for t in (tensor, other))


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
        fits = value.shape == right.shape
        is_lost = value.numel() > 0 and value.untyped_storage().nbytes() == 0
        if value.dtype != right.dtype or is_lost or not (fits or name == target.free):
            return None
        copy = right if fits else right.new_empty(value.shape)
        plain[name] = copy.copy_(value.detach()).requires_grad_(value.requires_grad)
    return plain | target.plain


def is_refused(target: Target, arguments: Arguments) -> bool:
    """Whether the call raised; asserts that its answer is right if it did not."""
    plain = plain_of(target, arguments)
    try:
        got = target.call(arguments)
    except (AssertionError, SystemError):
        raise
    except Exception:  # by whichever error: memory faults end the process instead
        return True
    assert plain is not None, "an answer to a wrong tensor"
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


# The gated block.
CASE = make_case("down", (2, 3, 4), 3, (2, 1), 0.5, gains=True, image_bias=True)
NUMBERS: Arguments = {
    "pad_top": 1, "pad_left": 1, "layer": 3, "first_image": 0, "threads": 1,
    "keep_from": CASE.options.keep_from, "scale": CASE.options.scale, "instruction_set": "auto",
}  # fmt: skip


def block_inputs() -> Arguments:
    return {name: guarded(t) for name, t in CASE.operands(torch.float32).items()}


def block_results() -> dict[str, Tensor]:
    results = forward_op(
        *CASE.operands(torch.float32).values(), *CASE.options._replace(impl="native", save=True)
    )
    return dict(zip(("y", "h", "gates"), results, strict=False))


def block_forward() -> Arguments:
    written = {name: guarded(t * torch.nan) for name, t in block_results().items()}
    return block_inputs() | written | NUMBERS


def block_backward(frozen: bool) -> Arguments:
    """frozen: without the gradients of weights."""
    given, values = block_inputs(), block_results()
    values["grad_y"] = 0.5 * values.pop("y")
    named = [name for name in FIELDS if name not in ("bias_nin", "seed")]
    kept = [name for name in named if not (frozen and FIELDS[name].is_parameter)]
    grads = {f"grad_{name}": guarded(given[name] * torch.nan) for name in kept}
    return given | {name: guarded(t) for name, t in values.items()} | grads | NUMBERS


def block_of_extension(direction: str, given: Arguments) -> list[Tensor]:
    tensors = {name: value for name, value in given.items() if name not in NUMBERS}
    numbers = {name: given[name] for name in NUMBERS}
    getattr(_extension.extension(), f"gated_resnet_{direction}")(tensors, **numbers)
    return []


# The logistic mixture's likelihood.
def mixture_inputs(channels: int) -> Arguments:
    generator = torch.Generator().manual_seed(channels)
    levels = torch.randint(0, 256, (2, channels, 4, 5), generator=generator)
    levels[0, :, 0, :2] = torch.tensor([0, 255])
    n_params = 3 * 2 + 256 if channels == 1 else 10 * 2
    params = torch.randn(2, n_params, 4, 5, generator=generator)
    tensors = {"x": guarded(levels / 127.5 - 1), "params": guarded(params)}
    return tensors | {"likelihood": "discretized", "atoms": channels == 1, "smoothing_scale": 0.0}


def mixture_forward(channels: int) -> Arguments:
    written = {"log_prob": unwritten(2, 4, 5), "state": unwritten(2, 4, 4, 5)}
    numbers = {"grad_x": None, "grad_params": None, "threads": 1, "instruction_set": "auto"}
    return mixture_inputs(channels) | written | numbers


def mixture_backward(channels: int) -> Arguments:
    given = mixture_forward(channels)
    _extension.extension().logistic_mixture(**given)
    given |= {f"grad_{name}": unwritten(*given[name].shape) for name in ("x", "params")}
    given["log_prob"] = None
    return given | {"grad": guarded(torch.linspace(-1, 1, 40).view(2, 4, 5))}


def mixture_of_extension(given: Arguments) -> list[Tensor]:
    _extension.extension().logistic_mixture(**given)
    return []


# The sampler.
SHAPE, CLASSES, PIXELS = (3, 1, 8, 8), 2, BYTES | {"likelihood": "discretized"}
SAMPLER: Odd = REFUSED | {"threads": [0, -1, 2**31, 2**40, 1.5], "seed": [-1, 2**64, 1.5, "x"]}


def make_program(conditioning: str, bf16: bool, n_classes: int = 0, **more: Any) -> Program:
    """more: fields of the model's configuration."""
    sizes = {"n_filters": 3, "n_mix": 2, "n_classes": n_classes, "likelihood": "discretized"}
    return Program(network(conditioning, **sizes | more), bf16=bf16)


@cache
def make_sampler(conditioning: str, bf16: bool, n_classes: int = 0, **more: Any) -> Any:
    program = make_program(conditioning, bf16, n_classes, **more)
    return _extension.extension().CpuSampler(program, bf16, "auto")


def draw_arguments(conditioning: str, completes: bool = False, n_classes: int = 0) -> Arguments:
    """completes: some pixels are known, the first row among them."""
    context = torch.linspace(-1, 1, 192).view(SHAPE)
    mask = (torch.arange(192) % 64 % 9 < 8).view(3, 8, 8) & completes
    return {
        "out": guarded(torch.where(mask[:, None], context.flip(0), torch.nan)),
        "context": None if conditioning == "none" else guarded(context),
        "mask": guarded(mask.view(torch.uint8)) if completes else None,
        "labels": guarded(torch.tensor([-1, 0, 1])) if n_classes else None,
        "seed": 5, "first_index": 2, "temperature": 1.0, "guidance": 0.0,
        "threads": 2, "slice": 0, "progress": None,
    }  # fmt: skip


def draws(conditioning: str, bf16: bool, completes: bool, classes: int = 0, **more: Any) -> Target:
    def call(given: Arguments) -> list[Tensor]:
        make_sampler(conditioning, bf16, classes, **more).sample(**given)
        assert given["out"].isfinite().all()
        return []

    return Target(
        f"_C.CpuSampler.sample, {conditioning}, {bf16=}, {completes=}, {classes=}, {more}",
        partial(draw_arguments, conditioning, completes, classes),
        *(call, {"threads": 1, "slice": 0, "progress": None}, "out", SAMPLER),
    )


def bytes_per_image(**size: int) -> int:
    return make_sampler("none", False).bytes_per_image(**size)  # whose caches are rings of rows


raw = partial(Target, plain={"threads": 1})
backward = partial(block_of_extension, "backward")
TARGETS = [
    raw("_C.gated_resnet_forward", block_forward, partial(block_of_extension, "forward")),
    raw("_C.gated_resnet_backward", partial(block_backward, False), backward),
    raw("_C.gated_resnet_backward, frozen", partial(block_backward, True), backward),
    *(
        raw(f"_C.logistic_mixture, {arguments.__name__}, C = {c}", partial(arguments, c),
            mixture_of_extension, refused=REFUSED | results_of_the_other)
        for arguments, results_of_the_other in (
            (mixture_forward, {"grad_x": [unwritten(2, 1, 4, 5)],
                               "grad_params": [unwritten(2, 262, 4, 5)]}),
            (mixture_backward, {"log_prob": [unwritten(2, 4, 5)]}),
        )
        for c in (1, 3)
    ),
    *(draws(conditioning, bf16, False) for conditioning, bf16 in
      (("none", False), ("none", True), ("stack", False), ("stack", True), ("concat", False),
       ("concat", True))),
    draws("none", False, True),
    draws("stack", True, True),
    draws("concat", False, False, CLASSES),
    draws("none", True, True, CLASSES),
    draws("none", True, False, **PIXELS),
    draws("stack", False, True, **PIXELS),
    Target(
        "_C.CpuSampler.bytes_per_image",
        lambda: {"height": 8, "width": 8},
        lambda given: [torch.tensor(bytes_per_image(**given))],
    ),
    Target(
        "_C.philox4x32_10",
        lambda: {"counter": [1, 2, 3, 2**32 - 1], "key": (5, 2**32 - 1)},
        lambda given: [torch.tensor(_extension.extension().philox4x32_10(**given))],
    ),
]  # fmt: skip


@pytest.mark.parametrize("every", [24, pytest.param(1, marks=pytest.mark.full)])
@pytest.mark.parametrize("target", TARGETS, ids=[target.name for target in TARGETS])
def test_a_wrong_call_raises_or_answers_rightly(target: Target, every: int) -> None:
    """One in so many, all those that must be refused, and all that share memory."""
    assert USED is None or _extension.extension().__file__ == USED
    right = target.arguments()
    assert not is_refused(target, right), f"{target.name} refuses right arguments"
    assert_untouched(right)
    for name in right.keys() & target.refused.keys():
        for value in target.refused[name]:
            assert is_refused(target, target.arguments() | {name: value}), f"{name}: {value!r}"
    for number, (words, own, arguments) in enumerate(wrong_calls(target)):
        if number % every == 0 or "memory of" in words:
            is_refused(target, arguments)
            assert_untouched(own)


def test_bytes_are_linear_in_rows_and_columns() -> None:
    eight, twelve, most = (bytes_per_image(height=8, width=n) for n in (8, 12, 2**15))
    assert most == bytes_per_image(height=2**15, width=2**15)
    assert most == eight + (2**15 - 8) // 4 * (twelve - eight)


ODD = [
    *(None, "x", "gaussian", 1.5, True, (), {}, np.zeros(3), torch.ones(2), object()),
    *(np.zeros((3, 1, 6)), np.full((3, 1, 6), np.nan), np.zeros((3, 1, 6), object)),
    *(-(2**31), -2, -1, 0, 1, 2, 3, 5, 64, 2**20, 2**31 // 10 + 1, 2**31 - 1, 2**31, 2**70),
]


def wrong_programs(program: Program) -> Iterator[str]:
    """The name of a field each, while the program has a wrong value there."""
    terms = [term for op in program.ops for term in op.terms]
    for part in [program, *program.ops, *program.caches, *terms]:
        for name, right in sorted(vars(part).items()):
            for value in ODD:
                object.__setattr__(part, name, value)
                yield name
            object.__setattr__(part, name, right)


@pytest.mark.parametrize("every", [408, pytest.param(17, marks=pytest.mark.full)])
@pytest.mark.parametrize(
    ("conditioning", "classes", "more"),
    [("none", 0, {}), ("stack", CLASSES, {}), ("concat", 0, {}), ("stack", 0, PIXELS)],
)
def test_a_wrong_program_is_refused_or_draws_within_its_memory(
    conditioning: str, classes: int, more: Arguments, every: int
) -> None:
    program, calls, refused = make_program(conditioning, False, classes, **more), 0, 0
    for _field in islice(wrong_programs(program), 0, None, every):
        calls += 1
        try:
            sampler = _extension.extension().CpuSampler(program, False, "auto")
        except SystemError:
            raise
        except Exception:
            refused += 1
            continue
        if sampler.bytes_per_image(8, 8) > 2**24:
            continue
        shape = (3, program.image_channels, 8, 8)
        given = {
            "out": torch.zeros(shape),
            "context": torch.zeros(shape) if program.conditioned else None,
            "labels": torch.zeros(3, dtype=torch.int64) if program.n_classes else None,
        }
        for threads in (1, 4):
            sampler.sample(**draw_arguments(conditioning) | given | {"threads": threads})
    assert refused > calls // 3
