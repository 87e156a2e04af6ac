"""Laws of the shifted convolutions: what they see, what they compute, what they refuse."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from dsmooth.functional import (
    Shift,
    concat_elu,
    down_shift,
    right_shift,
    shifted_conv2d,
    shifted_conv_transpose2d,
)
from tests.helpers.data_makers import refuses

pytestmark = pytest.mark.quick

KERNELS: list[tuple[Shift, int, int]] = [
    ("down", 2, 3),
    ("down", 1, 5),
    ("down_right", 2, 2),
    ("down_right", 1, 3),
    ("none", 3, 3),
]
CONV, TRANSPOSED = shifted_conv2d, shifted_conv_transpose2d


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize(("shift", "kh", "kw"), KERNELS)
def test_values_are_the_sum_over_taps(shift: Shift, kh: int, kw: int) -> None:
    x, weight, bias = draw(2, 3, 4, 5), draw(6, 3, kh, kw, seed=1), draw(6, seed=2)
    y = shifted_conv2d(x, weight, bias, shift=shift)
    left = kw - 1 if shift == "down_right" else (kw - 1) // 2
    above = (kh - 1) // 2 if shift == "none" else kh - 1
    expected = bias.view(-1, 1, 1).expand(2, 6, 4, 5).clone()
    for r, c, i, j in itertools.product(range(4), range(5), range(kh), range(kw)):
        row, col = r - above + i, c - left + j
        if 0 <= row < 4 and 0 <= col < 5:
            expected[:, :, r, c] += x[:, :, row, col] @ weight[:, :, i, j].T
    torch.testing.assert_close(y, expected)
    half = shifted_conv2d(x, weight, bias, shift=shift, stride=2)
    torch.testing.assert_close(half, expected[:, :, ::2, ::2])


@pytest.mark.parametrize(("shift", "kw"), [("down", 3), ("down_right", 2)])
def test_transposed_values_are_the_sum_over_taps(shift: Shift, kw: int) -> None:
    x, weight, bias = draw(2, 3, 3, 4), draw(3, 5, 2, kw, seed=1), draw(5, seed=2)
    y = shifted_conv_transpose2d(x, weight, bias, shift=shift)
    expected = bias.view(-1, 1, 1).expand(2, 5, 6, 8).clone()
    first = (kw - 1) // 2 if shift == "down" else 0
    for r, c, i, j in itertools.product(range(3), range(4), range(2), range(kw)):
        row, col = 2 * r + i, 2 * c + j - first
        if row < 6 and 0 <= col < 8:
            expected[:, :, row, col] += x[:, :, r, c] @ weight[:, :, i, j]
    torch.testing.assert_close(y, expected)


def test_shifts_move_by_one_and_fill_with_zeros() -> None:
    x = draw(2, 3, 4, 5).to(memory_format=torch.channels_last)
    down, right = down_shift(x), right_shift(x)
    assert torch.equal(down[:, :, 1:], x[:, :, :-1])
    assert torch.equal(right[..., 1:], x[..., :-1])
    assert not down[:, :, 0].any()
    assert not right[..., 0].any()
    for y in (down, right):
        assert y.is_contiguous(memory_format=torch.channels_last)


def test_concat_elu_is_elu_of_both_signs() -> None:
    x = draw(2, 3, 4, 5)
    torch.testing.assert_close(concat_elu(x), torch.cat([F.elu(x), F.elu(-x)], dim=1))


@pytest.mark.parametrize(
    ("op", "changes", "message"),
    [
        (CONV, {"shift": "up"}, "`shift` must be one of"),
        (CONV, {"weight": draw(2, 2, 3)}, r"weight must have shape \(D, C, kh, kw\), got"),
        (CONV, {"x": draw(1, 1, 4, 4)}, r"x must have shape \(B, 2, H, W\)"),
        (CONV, {"weight": draw(3, 2, 2, 2)}, "has no centre"),
        (CONV, {"weight": draw(3, 2, 2, 3), "shift": "none"}, "a kernel of 2x3 has no centre"),
        (CONV, {"weight": draw(3, 2, 0, 3)}, "at least one row and column, got 0x3"),
        (CONV, {"stride": 3}, "`stride` must be one of 1, 2"),
        (CONV, {"bias": draw(1)}, r"bias must have shape \(3,\), got \(1,\)"),
        (CONV, {"bias": torch.ones(3).bool()}, "bias must be a floating-point tensor, got torch."),
        (CONV, {"weight": draw(3, 2, 2, 3).to("meta")}, "weight must be on cpu, got me"),
        (TRANSPOSED, {"weight": draw(2, 3, 3, 3), "shift": "none"}, "`shift` must be one of d"),
        (TRANSPOSED, {"weight": draw(2, 3, 1, 3)}, r"weight must have shape \(C, D, 2, kw\)"),
        (TRANSPOSED, {"x": draw(1, 3, 4, 4)}, r"x must have shape \(B, 2, H, W\)"),
        (TRANSPOSED, {"bias": draw(2)}, r"bias must have shape \(3,\), got \(2,\)"),
    ],
)
def test_wrong_arguments_are_refused(op: Any, changes: dict[str, Any], message: str) -> None:
    weight = draw(3, 2, 2, 3) if op is CONV else draw(2, 3, 2, 3)
    good = {"x": draw(1, 2, 4, 4), "weight": weight, "shift": "down"}
    refuses(message, op, error=(ValueError, TypeError), **{**good, **changes})


@pytest.mark.parametrize("function", [down_shift, right_shift, concat_elu])
def test_other_shapes_than_a_batch_of_images_are_refused(function: Any) -> None:
    refuses(r"x must have shape \(B, C, H, W\), got \(2, 4, 4\)", function, draw(2, 4, 4))
