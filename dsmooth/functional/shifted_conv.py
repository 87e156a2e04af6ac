"""Convolutions that see only what lies above, or above and to the left.

A shifted convolution pads on the causal side alone. So the output at (r, c) is a function of rows
<= r ("down"), or of rows <= r and columns <= c ("down_right"). docs/math.md, section 1,
calls them DS and DRS. Source: Salimans et al., PixelCNN++ (2017), section 2.4.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from .dispatch import Impl, compute_dtype, resolve_impl, triton_obstacle
from .taps import Shift, check_kernel, padding_of


def concat_elu(x: Tensor) -> Tensor:
    """elu([x, -x]) on channels: (B, C, H, W) -> (B, 2C, H, W)."""
    _check_image(x)
    return F.elu(torch.cat([x, -x], dim=1))


def down_shift(x: Tensor) -> Tensor:
    """Move (B, C, H, W) down by one row; row 0 becomes exactly zero."""
    _check_image(x)
    return F.pad(x, (0, 0, 1, -1))


def right_shift(x: Tensor) -> Tensor:
    """Move (B, C, H, W) right by one column; column 0 becomes exactly zero."""
    _check_image(x)
    return F.pad(x, (1, -1, 0, 0))


class Convolution(NamedTuple):
    """One of `shifted_convolutions`: x (B, C, H, W); weight, bias and shift as of `shifted_conv2d`
    or `shifted_conv_transpose2d`; gain: g (D,) if the weight is v of a weight norm g v / |v| per
    output filter; packed: the weight as `pack_weights` gave it, which saves Triton a launch."""

    x: Tensor
    weight: Tensor
    bias: Tensor | None
    shift: Shift
    gain: Tensor | None = None
    packed: Tensor | None = None


def shifted_convolutions(
    convs: Sequence[Convolution],
    *,
    stride: int = 1,
    transposed: bool = False,
    impl: Impl = "auto",
) -> tuple[Tensor, ...]:
    """`shifted_conv2d` of each, or (transposed) `shifted_conv_transpose2d`.

    Up to three that do not depend on each other: the Triton kernels compute them together, in as
    many launches as one takes. stride: 2 for transposed ones, which have no other. Raises as these
    do, and ValueError for more than three, or if only some have a bias, a gain
    or a packed weight.
    """
    if not 1 <= len(convs) <= 3:
        raise ValueError(f"convs must be one to three convolutions, got {len(convs)}")
    for name in ("bias", "gain", "packed"):
        if len({getattr(conv, name) is None for conv in convs}) > 1:
            raise ValueError(f"{name} must be given for all convolutions or for none")
    if _use_triton("shifted_convolutions", convs[0].x, impl):
        return _on_triton(convs, stride, transposed)
    results = []
    for conv in convs:
        weight = _folded(conv, transposed)
        if transposed:
            y = shifted_conv_transpose2d_ref(conv.x, weight, conv.bias, shift=conv.shift)
        else:
            y = shifted_conv2d_ref(conv.x, weight, conv.bias, shift=conv.shift, stride=stride)
        results.append(y)
    return tuple(results)


def shifted_conv2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    shift: Shift = "down",
    stride: int = 1,
    impl: Impl = "auto",
) -> Tensor:
    """Convolution of `x` (B, C, H, W) with `weight` (D, C, kh, kw), padded on the causal side.

    shift: "down" pads kh-1 rows on top and (kw-1)/2 columns on either side (kw odd);
        "down_right" pads kh-1 rows on top and kw-1 columns on the left;
        "none" pads symmetrically (kh and kw odd): an ordinary, unmasked convolution.
    stride: 1 or 2. Returns (B, D, H/stride, W/stride), in the autocast dtype under autocast.
    impl: "triton" is the Triton kernels, on CUDA; the others are all torch's own convolution: a
        network calls it a handful of times a step, against some fifty gated resnets. "auto" takes
        the kernels where they can run.

    Raises ValueError for a shape that does not fit, and RuntimeError, with the reason, for
    impl="triton" where the kernels cannot run.
    """
    if _use_triton("shifted_conv2d", x, impl):
        return _on_triton([Convolution(x, weight, bias, shift)], stride, transposed=False)[0]
    return shifted_conv2d_ref(x, weight, bias, shift=shift, stride=stride)


def shifted_conv2d_ref(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, *, shift: Shift, stride: int = 1
) -> Tensor:
    """The reference of `shifted_conv2d`: pad, then an ordinary convolution."""
    _check_conv(x, weight, bias, shift, stride)
    left, right, top, bottom = padding_of(weight.shape[2], weight.shape[3], shift)
    if (left, top) == (right, bottom):
        return F.conv2d(x, weight, bias, stride, padding=(top, left))
    return F.conv2d(F.pad(x, (left, right, top, bottom)), weight, bias, stride)


def shifted_conv_transpose2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    shift: Shift = "down",
    impl: Impl = "auto",
) -> Tensor:
    """Transposed convolution of stride 2 that keeps the causal order: doubles H and W.

    x: (B, C, H, W); weight: (C, D, 2, kw), kw odd for "down". Returns (B, D, 2H, 2W): of the
    full output (output_padding 1) the last row goes, and the columns that would look ahead: for
    "down" the first and the last ones, for "down_right" the last.

    Raises as `shifted_conv2d` does.
    """
    if _use_triton("shifted_conv_transpose2d", x, impl):
        return _on_triton([Convolution(x, weight, bias, shift)], 2, transposed=True)[0]
    return shifted_conv_transpose2d_ref(x, weight, bias, shift=shift)


def shifted_conv_transpose2d_ref(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, *, shift: Shift
) -> Tensor:
    """The reference of `shifted_conv_transpose2d`."""
    _check_transposed(x, weight, bias, shift)
    rows, columns = 2 * x.shape[2], 2 * x.shape[3]
    # The bias comes last: oneDNN's gradient of a transposed convolution's bias is a plain loop.
    y = F.conv_transpose2d(x, weight, stride=2, output_padding=1)
    first = (weight.shape[3] - 1) // 2 if shift == "down" else 0
    y = y[:, :, :rows, first : first + columns]
    return y if bias is None else y + bias.to(y.dtype).view(-1, 1, 1)


def _use_triton(op: str, x: Tensor, impl: Impl) -> bool:
    """Whether the Triton kernels compute: by name, or on CUDA where they can."""
    chosen = resolve_impl(impl)
    if chosen == "triton":
        obstacle = triton_obstacle(x.device, compute_dtype(x))
        if obstacle is not None:
            raise RuntimeError(f"{op} cannot run with impl='triton': {obstacle}")
        return True
    if chosen != "auto" or x.device.type != "cuda":
        return False
    return triton_obstacle(x.device, compute_dtype(x)) is None


def _on_triton(convs: Sequence[Convolution], stride: int, transposed: bool) -> tuple[Tensor, ...]:
    from .shifted_conv_triton import Operands, shifted_convs_triton

    given = []
    for x, weight, bias, shift, gain, packed in convs:
        _check(x, weight, bias, shift, stride, transposed)
        exact = torch.float64 if x.dtype == torch.float64 else torch.float32
        x = x.to(compute_dtype(x))
        gain, bias = (None if t is None else t.to(exact) for t in (gain, bias))
        given.append(Operands(x, weight.to(exact), gain, bias, packed, shift))
    return shifted_convs_triton(given, stride, transposed)


def _folded(conv: Convolution, transposed: bool) -> Tensor:
    """The weight, of a weight norm g v / |v|."""
    if conv.gain is None:
        return conv.weight
    check_kernel(conv.weight, conv.shift)
    norm = torch.linalg.vector_norm(conv.weight, dim=(0, 2, 3) if transposed else (1, 2, 3))
    if conv.gain.shape != norm.shape:
        raise ValueError(f"gain must have shape {tuple(norm.shape)}, got {tuple(conv.gain.shape)}")
    shape = (1, -1, 1, 1) if transposed else (-1, 1, 1, 1)
    return conv.weight * (conv.gain / norm).view(shape)


def _check(
    x: Tensor, weight: Tensor, bias: Tensor | None, shift: Shift, stride: int, transposed: bool
) -> None:
    if transposed:
        _check_transposed(x, weight, bias, shift)
    else:
        _check_conv(x, weight, bias, shift, stride)


def _check_image(x: Tensor) -> None:
    if x.ndim != 4:
        raise ValueError(f"x must have shape (B, C, H, W), got {tuple(x.shape)}")


def _check_conv(x: Tensor, weight: Tensor, bias: Tensor | None, shift: Shift, stride: int) -> None:
    check_kernel(weight, shift)
    filters, channels = weight.shape[:2]
    _check_operands(x, weight, bias, channels, filters)
    if stride not in (1, 2):
        raise ValueError(f"stride must be 1 or 2, got {stride}")


def _check_transposed(x: Tensor, weight: Tensor, bias: Tensor | None, shift: Shift) -> None:
    check_kernel(weight, shift)
    if shift == "none":
        raise ValueError('shift must be "down" or "down_right", got "none"')
    if weight.shape[2] != 2:
        raise ValueError(f"weight must have shape (C, D, 2, kw), got {tuple(weight.shape)}")
    channels, filters = weight.shape[:2]
    _check_operands(x, weight, bias, channels, filters)


def _check_operands(
    x: Tensor, weight: Tensor, bias: Tensor | None, channels: int, filters: int
) -> None:
    if x.ndim != 4 or x.shape[1] != channels:
        raise ValueError(f"x must have shape (B, {channels}, H, W), got {tuple(x.shape)}")
    if bias is not None and bias.shape != (filters,):
        raise ValueError(f"bias must have shape ({filters},), got {tuple(bias.shape)}")
    for name, tensor in (("weight", weight), ("bias", bias)):
        if tensor is not None and tensor.device != x.device:
            raise ValueError(f"{name} must be on x's device {x.device}, got {tensor.device}")
