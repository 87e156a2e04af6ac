"""Weights into the order that the convolutions read, and their gradients back out of it.

Packed weights are (T, C, D), taps x input channels x filters, so that a filter block is contiguous.
With ALTERNATE_C input channel n of the packed order is channel (n % 2) * C / 2 + n // 2 of the
weight: elu(x_i) and elu(-x_i) lie side by side. With ALTERNATE_D likewise the filters, A_i and G_i.
Weight norm, w = g v / |v| per filter, is folded on the way in and differentiated on the way out. It
costs no launch of its own.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .launch import launch

BLOCK_D = 8
BLOCK_K = 256


@triton.jit
def original(n, COUNT: tl.constexpr, ALTERNATE: tl.constexpr):
    """The channel of the weight that has number n in packed order."""
    if ALTERNATE:
        n = n % 2 * (COUNT // 2) + n // 2
    return n


@triton.jit
def block_of_weight(
    first, d, stride_d, stride_c, stride_t,
    T: tl.constexpr, C: tl.constexpr, D: tl.constexpr,
    ALTERNATE_C: tl.constexpr, ALTERNATE_D: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """Offsets in the weight and in the packed weight of rows (tap, channel) first .. and filters d,
    and which exist: (BLOCK_K, BLOCK_D) each."""
    k = (first + tl.arange(0, BLOCK_K))[:, None].to(tl.int64)
    mask = (k < T * C) & (d < D)[None, :]
    channel = original(k % C, C, ALTERNATE_C)
    filter_ = original(d, D, ALTERNATE_D)[None, :]
    weight = filter_ * stride_d + channel * stride_c + k // C * stride_t
    return weight, k * D + d[None, :], mask


@triton.jit
def pack_kernel(
    v_ptr, gain_ptr, packed_ptr, stride_d, stride_c, stride_t,
    T: tl.constexpr, C: tl.constexpr, D: tl.constexpr,
    ALTERNATE_C: tl.constexpr, ALTERNATE_D: tl.constexpr, NORMED: tl.constexpr,
    BLOCK_K: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """packed = g v / |v|, or v itself without NORMED."""
    d = tl.program_id(0).to(tl.int64) * BLOCK_D + tl.arange(0, BLOCK_D)
    factor = tl.full((BLOCK_D,), 1.0, dtype=v_ptr.dtype.element_ty)
    if NORMED:
        square = tl.zeros((BLOCK_D,), dtype=v_ptr.dtype.element_ty)
        for first in range(0, T * C, BLOCK_K):
            weight, _, mask = block_of_weight(
                first, d, stride_d, stride_c, stride_t, T=T, C=C, D=D,
                ALTERNATE_C=ALTERNATE_C, ALTERNATE_D=ALTERNATE_D, BLOCK_K=BLOCK_K,
            )  # fmt: skip
            v = tl.load(v_ptr + weight, mask=mask, other=0.0)
            square += tl.sum(v * v, axis=0)
        gain = tl.load(gain_ptr + original(d, D, ALTERNATE_D), mask=d < D, other=0.0)
        factor = gain / tl.where(d < D, tl.sqrt(square), 1.0)
    for first in range(0, T * C, BLOCK_K):
        weight, packed, mask = block_of_weight(
            first, d, stride_d, stride_c, stride_t, T=T, C=C, D=D,
            ALTERNATE_C=ALTERNATE_C, ALTERNATE_D=ALTERNATE_D, BLOCK_K=BLOCK_K,
        )  # fmt: skip
        v = tl.load(v_ptr + weight, mask=mask, other=0.0)
        w = v * factor[None, :]
        tl.store(packed_ptr + packed, w.to(packed_ptr.dtype.element_ty), mask=mask)


@triton.jit
def unpack_kernel(
    grad_ptr, v_ptr, gain_ptr, grad_v_ptr, grad_gain_ptr, stride_d, stride_c, stride_t,
    T: tl.constexpr, C: tl.constexpr, D: tl.constexpr,
    ALTERNATE_C: tl.constexpr, ALTERNATE_D: tl.constexpr, NORMED: tl.constexpr,
    BLOCK_K: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """From dw, packed: dg = <dw, v> / |v| and dv = g / |v| (dw - v <dw, v> / |v|^2) per filter, or
    dv = dw without NORMED. v and dv share their strides."""
    d = tl.program_id(0).to(tl.int64) * BLOCK_D + tl.arange(0, BLOCK_D)
    if NORMED:
        square = tl.zeros((BLOCK_D,), dtype=v_ptr.dtype.element_ty)
        product = tl.zeros((BLOCK_D,), dtype=v_ptr.dtype.element_ty)
        for first in range(0, T * C, BLOCK_K):
            weight, packed, mask = block_of_weight(
                first, d, stride_d, stride_c, stride_t, T=T, C=C, D=D,
                ALTERNATE_C=ALTERNATE_C, ALTERNATE_D=ALTERNATE_D, BLOCK_K=BLOCK_K,
            )  # fmt: skip
            v = tl.load(v_ptr + weight, mask=mask, other=0.0)
            dw = tl.load(grad_ptr + packed, mask=mask, other=0.0)
            square += tl.sum(v * v, axis=0)
            product += tl.sum(dw * v, axis=0)
        filter_ = original(d, D, ALTERNATE_D)
        square = tl.where(d < D, square, 1.0)
        norm = tl.sqrt(square)
        gain = tl.load(gain_ptr + filter_, mask=d < D, other=0.0)
        tl.store(grad_gain_ptr + filter_, product / norm, mask=d < D)
    for first in range(0, T * C, BLOCK_K):
        weight, packed, mask = block_of_weight(
            first, d, stride_d, stride_c, stride_t, T=T, C=C, D=D,
            ALTERNATE_C=ALTERNATE_C, ALTERNATE_D=ALTERNATE_D, BLOCK_K=BLOCK_K,
        )  # fmt: skip
        dw = tl.load(grad_ptr + packed, mask=mask, other=0.0)
        if NORMED:
            v = tl.load(v_ptr + weight, mask=mask, other=0.0)
            dw = (gain / norm)[None, :] * (dw - v * (product / square)[None, :])
        tl.store(grad_v_ptr + weight, dw, mask=mask)


def _dense(v: Tensor) -> Tensor:
    """v with one stride for all taps: contiguous or channels_last as it is, else a copy."""
    if v.is_contiguous() or v.is_contiguous(memory_format=torch.channels_last):
        return v
    return v.contiguous()


def _strides(v: Tensor) -> dict[str, int]:
    """Strides of filter, channel and tap."""
    _, channels, rows, cols = v.shape
    stride_c, stride_t = (rows * cols, 1) if v.is_contiguous() else (1, channels)
    return {"stride_d": channels * rows * cols, "stride_c": stride_c, "stride_t": stride_t}


def pack(
    v: Tensor, gain: Tensor | None, dtype: torch.dtype, *, pairs_in: bool, pairs_out: bool
) -> Tensor:
    """The weight v (D, C, kh, kw), times gain / |v| per filter if there is one, packed.

    pairs_in, pairs_out: alternate the halves of the input channels, of the filters. v and gain are
    float32, or float64 for a float64 result. Returns (kh kw, C, D) of `dtype`.
    """
    v = _dense(v)
    filters, channels, rows, cols = v.shape
    packed = torch.empty((rows * cols, channels, filters), dtype=dtype, device=v.device)
    launch(
        pack_kernel, (triton.cdiv(filters, BLOCK_D),), v.device,
        v_ptr=v, gain_ptr=v if gain is None else gain, packed_ptr=packed, **_strides(v),
        T=rows * cols, C=channels, D=filters, ALTERNATE_C=pairs_in, ALTERNATE_D=pairs_out,
        NORMED=gain is not None, BLOCK_K=BLOCK_K, BLOCK_D=BLOCK_D, num_warps=4,
    )  # fmt: skip
    return packed


def unpack(
    grad: Tensor, v: Tensor, gain: Tensor | None, *, pairs_in: bool, pairs_out: bool
) -> tuple[Tensor, Tensor | None]:
    """Gradients of v and gain from that of the packed weight, (kh kw, C, D) in v's dtype.

    The first is contiguous, or channels_last where v is that alone.
    """
    v = _dense(v)
    filters, channels, rows, cols = v.shape
    layout = torch.contiguous_format if v.is_contiguous() else torch.channels_last
    grad_v = torch.empty(v.shape, dtype=v.dtype, device=v.device, memory_format=layout)
    grad_gain = None if gain is None else gain.new_empty(gain.shape)
    launch(
        unpack_kernel, (triton.cdiv(filters, BLOCK_D),), v.device,
        grad_ptr=grad, v_ptr=v, gain_ptr=v if gain is None else gain,
        grad_v_ptr=grad_v, grad_gain_ptr=v if grad_gain is None else grad_gain, **_strides(v),
        T=rows * cols, C=channels, D=filters, ALTERNATE_C=pairs_in, ALTERNATE_D=pairs_out,
        NORMED=gain is not None, BLOCK_K=BLOCK_K, BLOCK_D=BLOCK_D, num_warps=4,
    )  # fmt: skip
    return grad_v, grad_gain
