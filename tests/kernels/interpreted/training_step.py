"""Tests of the kernels of a training step outside of its layers, under Triton's interpreter.

    TRITON_INTERPRET=1 pytest -n0 tests/kernels/interpreted/training_step.py

Run by test_interpreter.py.
"""

from __future__ import annotations

import pytest
import torch

from dsmooth import philox
from dsmooth.functional import use_impl
from dsmooth.functional.image_words import image_words
from dsmooth.functional.shifted_conv import fold_weight_norm
from dsmooth.functional.weight_norm import backward_op, forward_op, weight_norm
from dsmooth.kernels.launch import INTERPRETED
from dsmooth.philox import Stream
from dsmooth.smoothing import SMOOTHINGS
from tests.helpers import interpreter_speed  # noqa: F401 - for its effect

assert INTERPRETED, "run with TRITON_INTERPRET=1"

pytestmark = pytest.mark.grid


@pytest.mark.parametrize("seed", [0, 1, 0x1234_5678_9ABC_DEF0, 2**64 - 1])
@pytest.mark.parametrize("first", [0, 2**32 - 2, torch.tensor(2**40 + 7)], ids=str)
@pytest.mark.parametrize(("images", "counters"), [(1, 1), (3, 130), (0, 4), (2, 0)])
def test_words_are_those_of_philox(images, counters, first, seed) -> None:
    where = {"first_index": first, "stream": Stream.CLEAN_NOISE, "repeat": 2**24 - 1}
    expected = philox.image_words(images, counters, seed=seed, **where)
    with use_impl("triton"):
        got = image_words(images, counters, seed=seed, **where)
        assert torch.equal(got, expected)
        if seed < 2**63:
            words = image_words(images, counters, seed=torch.tensor(seed), **where)
            assert torch.equal(words, expected)


def test_what_is_out_of_range_is_refused_as_by_philox() -> None:
    with use_impl("triton"):
        for wrong in ({"seed": 2**64}, {"first_index": -1}, {"repeat": 2**24}, {"stream": 99}):
            named = {"seed": 0, "first_index": 0, "repeat": 0, "stream": Stream.FLIP} | wrong
            with pytest.raises(ValueError, match=r"must|not a valid"):
                image_words(1, 1, **named)


@pytest.mark.parametrize("kind", SMOOTHINGS)
@pytest.mark.parametrize("shape", [(2, 1, 3, 3), (1, 3, 4, 5)])
def test_noise_has_the_bits_of_the_cpu(kind: str, shape: tuple[int, ...]) -> None:
    x = torch.rand(shape, requires_grad=True)
    smoothing = SMOOTHINGS[kind](0.3)
    expected = smoothing.sample(x, seed=3, first_index=7, repeat=1)
    with use_impl("triton"):
        got = smoothing.sample(x, seed=3, first_index=7, repeat=1)
        assert torch.equal(got, expected)
        (slope,) = torch.autograd.grad(got.sum(), x)
    assert torch.equal(slope, torch.ones_like(x))


KERNELS = [
    ((5, 3, 2, 3), False, torch.channels_last),
    ((5, 3, 2, 3), False, torch.contiguous_format),
    ((6, 70, 2, 3), False, torch.channels_last),
    ((70, 6, 2, 2), True, torch.channels_last),
    ((9, 4, 1, 1), False, torch.channels_last),
    ((1, 1, 1, 1), False, torch.channels_last),
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("shape", "transposed", "order"), KERNELS)
def test_weight_norm_is_as_exact_as_eager(shape, transposed, order, dtype) -> None:
    """Value and gradients against float64; an error of one rounding more is allowed."""
    torch.manual_seed(1)
    v = torch.randn(shape).to(memory_format=order).requires_grad_()
    gain = torch.randn(shape[1 if transposed else 0]).requires_grad_()
    grad = torch.randn(shape).to(dtype)
    results = {}
    for name, impl, exact in (
        ("triton", "triton", torch.float32),
        ("eager", "reference", torch.float32),
        ("exact", "reference", torch.float64),
    ):
        leaves = [x.detach().to(exact).requires_grad_() for x in (v, gain)]
        autocast = torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16)
        with use_impl(impl), autocast:
            w = weight_norm(*leaves, transposed=transposed)
        if name == "triton":
            assert w.dtype == dtype
            assert w.stride() == v.stride()
        rounded = w.to(dtype) if name != "exact" else w
        slopes = torch.autograd.grad(rounded, leaves, grad.to(rounded.dtype))
        results[name] = [tensor.detach().double() for tensor in (rounded, *slopes)]
    kinds = (dtype, torch.float32, torch.float32)
    for got, eager, exact, kind in zip(*results.values(), kinds, strict=True):
        rounding = torch.finfo(kind).eps * exact.abs().max()
        assert (got - exact).abs().max() <= 2 * (eager - exact).abs().max() + rounding


def test_weight_norm_without_gradients_and_elsewhere_is_the_equation() -> None:
    v, gain = torch.randn(3, 2, 2, 2), torch.rand(3)
    with use_impl("triton"):
        assert torch.equal(weight_norm(v, gain), fold_weight_norm(v, gain))
        half = weight_norm(v.double().requires_grad_(), gain.double())
    assert half.dtype == torch.float64
    v.requires_grad_()
    assert type(weight_norm(v, gain).grad_fn).__name__ == "MulBackward0"


# opcheck reads .grad of the clones that it makes; the warning is about its own tensors
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")
@pytest.mark.full
def test_opcheck() -> None:
    v = torch.randn(3, 2, 2, 2).to(memory_format=torch.channels_last)
    gain = torch.rand(3)
    torch.library.opcheck(forward_op, (v, gain, torch.float32, False))
    w, norm = forward_op(v, gain, torch.float32, False)
    needs = [True, True]
    torch.library.opcheck(backward_op, (w, norm, v, gain, torch.float32, False, needs))
