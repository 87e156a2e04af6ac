"""Weight norm of a convolution's kernel, w = g v / |v| per filter, and its gradient."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from .geometry import cdiv
from .launch import Prepared, launch, prepare

BLOCK_D = tl.constexpr(4)  # filters per program
BLOCK_K = tl.constexpr(256)


@triton.jit
def elements_of(rows, d, first):
    """Offsets (BLOCK_D, BLOCK_K) of the elements first .. of filters d, and a mask."""
    D, K, stride_d, stride_k = rows
    k = first + tl.arange(0, BLOCK_K)
    offset = d.to(tl.int64)[:, None] * stride_d + k[None, :] * stride_k
    return offset, (d < D)[:, None] & (k < K)[None, :]


@triton.jit
def fold_kernel(v_ptr, gain_ptr, w_ptr, norm_ptr, rows):
    """Write w in its own dtype, with the strides of v, and |v| (D,)."""
    d = tl.program_id(0) * BLOCK_D + tl.arange(0, BLOCK_D)
    mask_d = d < rows[0]
    square = tl.zeros((BLOCK_D,), dtype=tl.float32)
    for first in range(0, rows[1], BLOCK_K):
        offset, mask = elements_of(rows, d, first)
        v = tl.load(v_ptr + offset, mask=mask, other=0.0)
        square += tl.sum(v * v, axis=1)
    norm = tl.sqrt(square)
    tl.store(norm_ptr + d, norm, mask=mask_d)
    factor = tl.load(gain_ptr + d, mask=mask_d, other=0.0) / tl.where(mask_d, norm, 1.0)
    for first in range(0, rows[1], BLOCK_K):
        offset, mask = elements_of(rows, d, first)
        v = tl.load(v_ptr + offset, mask=mask, other=0.0)
        tl.store(w_ptr + offset, (v * factor[:, None]).to(w_ptr.dtype.element_ty), mask=mask)


@triton.jit
def fold_gradient_kernel(
    dw_ptr, v_ptr, gain_ptr, norm_ptr, grad_v_ptr, grad_gain_ptr, rows,
):  # fmt: skip
    """dg = <dw, v> / |v| and dv = g / |v| (dw - v <dw, v> / |v|^2) per filter."""
    d = tl.program_id(0) * BLOCK_D + tl.arange(0, BLOCK_D)
    mask_d = d < rows[0]
    product = tl.zeros((BLOCK_D,), dtype=tl.float32)
    for first in range(0, rows[1], BLOCK_K):
        offset, mask = elements_of(rows, d, first)
        v = tl.load(v_ptr + offset, mask=mask, other=0.0)
        dw = tl.load(dw_ptr + offset, mask=mask, other=0.0).to(tl.float32)
        product += tl.sum(dw * v, axis=1)
    norm = tl.load(norm_ptr + d, mask=mask_d, other=1.0)
    gain = tl.load(gain_ptr + d, mask=mask_d, other=0.0)
    tl.store(grad_gain_ptr + d, product / norm, mask=mask_d)
    along = product / (norm * norm)
    for first in range(0, rows[1], BLOCK_K):
        offset, mask = elements_of(rows, d, first)
        v = tl.load(v_ptr + offset, mask=mask, other=0.0)
        dw = tl.load(dw_ptr + offset, mask=mask, other=0.0).to(tl.float32)
        dv = (gain / norm)[:, None] * (dw - v * along[:, None])
        tl.store(grad_v_ptr + offset, dv, mask=mask)


def prepare_rows(v: Tensor, transposed: bool) -> Prepared:
    """The launch over the filters of v (D, C, kh, kw), or (C, D, kh, kw) if transposed.

    rows: filters, elements of a filter, and the strides of both.
    """
    filters = v.shape[1 if transposed else 0]
    size = v.numel() // max(filters, 1)
    strides = (1, filters) if transposed else (size, 1)
    return prepare((cdiv(filters, BLOCK_D.value),), rows=(filters, size, *strides), num_warps=4)


def fold(v: Tensor, gain: Tensor, w: Tensor, norm: Tensor, transposed: bool) -> None:
    """Write w, in any dtype, and the norms (D,). v, w: float32 kernels, channels_last."""
    tensors = {"v_ptr": v, "gain_ptr": gain, "w_ptr": w, "norm_ptr": norm}
    launch(fold_kernel, prepare_rows(v, transposed), v.device, **tensors)


def fold_gradient(
    dw: Tensor,
    norm: Tensor,
    v: Tensor,
    gain: Tensor,
    grads: tuple[Tensor, Tensor],
    transposed: bool,
) -> None:
    """Write the gradients of v and of the gains. dw: any dtype, channels_last."""
    launch(
        fold_gradient_kernel, prepare_rows(v, transposed), v.device,
        dw_ptr=dw, v_ptr=v, gain_ptr=gain, norm_ptr=norm,
        grad_v_ptr=grads[0], grad_gain_ptr=grads[1],
    )  # fmt: skip
