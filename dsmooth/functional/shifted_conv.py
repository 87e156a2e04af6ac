"""Causal convolutions, whose output depends only on pixels above, or above and to the left.

The output at (r, c) is a function of rows <= r ("down"), or of rows <= r and columns <= c
("down_right"). Source: Salimans et al., PixelCNN++ (2017), section 2.4.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from ..fields import check_floating, check_one_of, check_tensor

Shift = Literal["down", "down_right", "none"]
SHIFTS = get_args(Shift)


def concat_elu(x: Tensor) -> Tensor:
    """elu([x, -x]) on channels: (B, C, H, W) -> (B, 2C, H, W)."""
    return concat_elu_inner(_image(x))


def concat_elu_inner(x: Tensor) -> Tensor:
    return F.elu(torch.cat([x, -x], dim=1))


def down_shift(x: Tensor) -> Tensor:
    """Shift (B, C, H, W) down by one row; row 0 becomes zero."""
    return down_shift_inner(_image(x))


def down_shift_inner(x: Tensor) -> Tensor:
    return F.pad(x, (0, 0, 1, -1))


def right_shift(x: Tensor) -> Tensor:
    """Shift (B, C, H, W) right by one column; column 0 becomes zero."""
    return right_shift_inner(_image(x))


def right_shift_inner(x: Tensor) -> Tensor:
    return F.pad(x, (1, -1, 0, 0))


def shifted_conv2d(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, *, shift: Shift = "down", stride: int = 1
) -> Tensor:
    """Convolution of `x` (B, C, H, W) with `weight` (D, C, kh, kw), padded on the causal side.

    shift: "down" pads kh-1 rows on top and (kw-1)/2 columns on either side (kw odd);
        "down_right" pads kh-1 rows on top and kw-1 columns on the left;
        "none" pads symmetrically (kh and kw odd): an ordinary, unmasked convolution.
    stride: 1 or 2. Returns (B, D, H/stride, W/stride), in the autocast dtype under autocast.

    Raises ValueError for a shape that does not fit, TypeError for weights that are not floating
    point.
    """
    check_kernel(weight, shift)
    _check_operands(x, weight, bias, weight.shape[1], weight.shape[0])
    check_one_of("stride", stride, (1, 2))
    return shifted_conv2d_inner(x, weight, bias, shift, stride)


def shifted_conv2d_inner(
    x: Tensor, weight: Tensor, bias: Tensor | None, shift: Shift, stride: int = 1
) -> Tensor:
    top, left = padding_of(weight, shift)
    bottom, right = weight.shape[2] - 1 - top, weight.shape[3] - 1 - left
    if (top, left) == (bottom, right):
        return F.conv2d(x, weight, bias, stride, padding=(top, left))
    return F.conv2d(F.pad(x, (left, right, top, bottom)), weight, bias, stride)


def padding_of(weight: Tensor, shift: Shift) -> tuple[int, int]:
    """The rows above and the columns to the left that a kernel (D, C, kh, kw) reaches to."""
    kh, kw = weight.shape[2:]
    top = (kh - 1) // 2 if shift == "none" else kh - 1
    return top, kw - 1 if shift == "down_right" else (kw - 1) // 2


def shifted_conv_transpose2d(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, *, shift: Shift = "down"
) -> Tensor:
    """Transposed convolution of stride 2 that keeps the causal order: doubles H and W.

    x: (B, C, H, W); weight: (C, D, 2, kw), kw odd for "down". Returns (B, D, 2H, 2W): the full
    output (output_padding 1) without its last row and its non-causal columns, the first and the
    last ones for "down", the last ones for "down_right".

    Raises the errors of `shifted_conv2d`.
    """
    check_kernel(weight, shift)
    check_one_of("shift", shift, ("down", "down_right"))
    check_tensor("weight", weight, ("C", "D", 2, "kw"))
    _check_operands(x, weight, bias, *weight.shape[:2])
    return shifted_conv_transpose2d_inner(x, weight, bias, shift)


def shifted_conv_transpose2d_inner(
    x: Tensor, weight: Tensor, bias: Tensor | None, shift: Shift
) -> Tensor:
    rows, columns = 2 * x.shape[2], 2 * x.shape[3]
    # The bias is added separately: oneDNN computes its gradient in a plain loop.
    y = F.conv_transpose2d(x, weight, stride=2, output_padding=1)
    first = (weight.shape[3] - 1) // 2 if shift == "down" else 0
    y = y[:, :, :rows, first : first + columns]
    return y if bias is None else y + bias.to(y.dtype).view(-1, 1, 1)


def fold_weight_norm(v: Tensor, gain: Tensor | None, over: Sequence[int] = (1, 2, 3)) -> Tensor:
    """The weight g v / |v| of weight norm, or v if `gain` is None.

    over: dimensions of the norm; by default those of an output filter of v (D, C, kh, kw).
    """
    if gain is None:
        return v
    norm = torch.linalg.vector_norm(v, dim=over, keepdim=True)
    return v * (gain.view_as(norm) / norm)


def _image(x: Tensor) -> Tensor:
    check_tensor("x", x, ("B", "C", "H", "W"))
    return x


def _check_operands(
    x: Tensor, weight: Tensor, bias: Tensor | None, channels: int, filters: int
) -> None:
    check_tensor("x", x, ("B", channels, "H", "W"))
    for name, tensor, shape in (("weight", weight, weight.shape), ("bias", bias, (filters,))):
        if tensor is not None:
            check_tensor(name, tensor, shape, x.device)
            check_floating(name, tensor)


def check_kernel(weight: Tensor, shift: str, name: str = "weight") -> None:
    """Raise ValueError unless `shift` is valid and fits the kernel of `weight` (D, C, kh, kw)."""
    check_one_of("shift", shift, SHIFTS)
    check_tensor(name, weight, ("D", "C", "kh", "kw"))
    kh, kw = weight.shape[2:]
    if kh < 1 or kw < 1:
        raise ValueError(f"a kernel must have at least one row and column, got {kh}x{kw}")
    if (shift != "down_right" and kw % 2 == 0) or (shift == "none" and kh % 2 == 0):
        raise ValueError(f"a kernel of {kh}x{kw} has no centre for shift={shift!r}")
