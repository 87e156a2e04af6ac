"""Laws of the shifted convolutions' Triton kernels, under the interpreter (test_interpreter.py)."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from dsmooth.functional.shifted_conv_triton import (
    shifted_conv_triton,
    shifted_conv_triton_backward,
)
from dsmooth.kernels import shifted_conv as kernels
from dsmooth.kernels import tilings
from tests.helpers import interpreter_speed  # noqa: F401 - for its effect
from tests.helpers.convolutions import Conv, run_together
from tests.helpers.gated_cases import EPS, STRIDES, assert_as_good
from tests.helpers.triton_canaries import guarded, guarded_memory

pytestmark = pytest.mark.grid
DTYPES = [torch.float64, torch.float32, torch.float16]


CONVS = [
    Conv("down", (2, 3), 1, (2, 5, 7), 2, 5),  # the stem's three
    Conv("down", (1, 3), 1, (1, 3, 33), 2, 40),
    Conv("down_right", (2, 1), 1, (1, 1, 1), 1, 1),
    Conv("none", (3, 3), 1, (1, 3, 5), 4, 5),  # the encoder's
    Conv("none", (1, 1), 1, (1, 1, 3), 40, 70),  # the head
    Conv("down", (2, 3), 2, (1, 5, 7), 5, 5),
    Conv("down_right", (2, 2), 2, (2, 4, 6), 5, 3),
    Conv("down", (2, 3), 0, (1, 3, 5), 5, 3),
    Conv("down_right", (2, 2), 0, (2, 2, 3), 3, 5),
]
# Of the beginning, and between levels: down, and up again.
TOGETHER = [CONVS[:3], [CONVS[5], CONVS[6]], CONVS[7:]]
TOGETHER = [[replace(conv, size=(2, 4, 6)) for conv in convs] for convs in TOGETHER]
each_conv = pytest.mark.parametrize("conv", CONVS, ids=str)


@pytest.mark.parametrize("dtype", DTYPES)
@each_conv
def test_as_good_as_eager(conv: Conv, dtype: torch.dtype) -> None:
    exact = conv.run("reference", torch.float64, rounded=dtype)
    eager = conv.run("reference", dtype)
    assert_as_good(conv.run("triton", dtype), eager, exact, EPS[dtype])


@pytest.mark.parametrize("prepare", list(STRIDES.values()), ids=list(STRIDES))
@pytest.mark.parametrize("conv", [CONVS[0], CONVS[5], CONVS[7]], ids=str)
def test_strides_do_not_matter(conv: Conv, prepare: Callable[[Tensor], Tensor]) -> None:
    plain = conv.run("triton", torch.float32, prepare=lambda t: t.mT.contiguous().mT)
    for name, value in conv.run("triton", torch.float32, prepare=prepare).items():
        assert torch.equal(value, plain[name]), name


@each_conv
def test_nothing_is_written_or_read_beside_a_tensor(conv: Conv) -> None:
    plain = conv.run("triton", torch.float32, prepare=STRIDES["channels_last"])
    with guarded_memory() as allocated:
        got = conv.run("triton", torch.float32, prepare=guarded)
    assert len(allocated) >= 5
    for name, value in plain.items():
        assert torch.equal(got[name], value), name


@pytest.mark.parametrize("conv", [CONVS[0], CONVS[2], CONVS[5], CONVS[6]], ids=str)
def test_no_output_sees_a_later_pixel(conv: Conv) -> None:
    """NaN in every pixel that an output must not see does not change it."""
    x, weight, bias = (t.float() for t in conv.draw(torch.float32))
    _, rows, cols = conv.size
    outputs = list(itertools.product(range(0, rows, conv.stride), range(0, cols, conv.stride)))
    later = torch.zeros(len(outputs), 1, rows, cols, dtype=torch.bool)
    for lost, (r, c) in zip(later, outputs, strict=True):
        lost[:, r + 1 :] = True
        if conv.shift == "down_right":
            lost[:, :, c + 1 :] = True
    images = x[:1].repeat(len(outputs), 1, 1, 1)
    plain = conv(images, weight, bias, "triton").flatten(2)
    poisoned = conv(images.masked_fill(later, torch.nan), weight, bias, "triton").flatten(2)
    here = torch.arange(len(outputs))
    assert torch.equal(poisoned[here, :, here], plain[here, :, here])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("convs", TOGETHER, ids=str)
def test_together_they_are_as_good_as_eager(convs: list[Conv], dtype: torch.dtype) -> None:
    """Those of both streams, with weight norm."""
    exact = run_together(convs, "reference", torch.float64, rounded=dtype)
    eager = run_together(convs, "reference", dtype)
    assert_as_good(run_together(convs, "triton", dtype), eager, exact, EPS[dtype])


def test_one_is_the_same_among_others() -> None:
    (first, *others) = TOGETHER[0]
    alone = run_together([first], "triton", torch.float32)
    among = run_together([first, *others], "triton", torch.float32)
    for name, value in alone.items():
        # But for sums over pixels, which are divided otherwise.
        if name in ("y0", "x0"):
            assert torch.equal(value, among[name]), name


def test_tiles_that_one_launch_cannot_have(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those that differ in warps: each in a launch of its own, with the same results."""
    expected = run_together(TOGETHER[1], "triton", torch.float32)
    warps = itertools.cycle((4, 8))
    for module, name in ((kernels, "matmul_tiling"), (tilings, "gradient_tiling")):
        original = getattr(module, name)
        monkeypatch.setattr(
            module,
            name,
            lambda *args, original=original: original(*args)._replace(num_warps=next(warps)),
        )
    tilings.gradient_plan.cache_clear()
    got = run_together(TOGETHER[1], "triton", torch.float32)
    tilings.gradient_plan.cache_clear()
    for name, value in expected.items():
        assert torch.equal(got[name], value), name


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")
@pytest.mark.parametrize("conv", [CONVS[6], CONVS[8]], ids=str)
def test_opcheck(conv: Conv) -> None:
    x, weight, bias = (t.float() for t in conv.draw(torch.float32))
    gain = torch.rand(conv.filters)
    none = (None,) * 6
    settings = conv.stride or 2, conv.stride == 0
    given = (x, weight, gain, bias, None, conv.shift)
    y, *_, packed = shifted_conv_triton(*given, *given, *none, *settings)
    for needs in ((True, True), (True, False), (False, True)):
        operands = (y, y, None, packed, *given, *given, *none)
        torch.library.opcheck(shifted_conv_triton_backward, (*operands, *settings, *needs))
    leaves = [t.requires_grad_() for t in (x, weight, gain, bias)]
    for own in (None, packed[: len(packed) // 2]):
        given = (*leaves, own, conv.shift)
        torch.library.opcheck(shifted_conv_triton, (*given, *none, *none, *settings))


def test_an_empty_batch_gives_empty_outputs_and_zero_gradients() -> None:
    for stride in (0, 1, 2):
        conv = Conv("down", (2, 3), stride, (0, 4, 4), 2, 3)
        for name, value in conv.run("triton", torch.float32).items():
            assert torch.equal(value, torch.zeros_like(value)), name
