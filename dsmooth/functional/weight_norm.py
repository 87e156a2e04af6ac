"""Weight norm of a layer: in PyTorch, or in training on CUDA by one kernel in each direction."""

from __future__ import annotations

import torch
from torch import Tensor

from .dispatch import Grads, autocast_dtype, register_op, takes_triton, wanted_gradients
from .shifted_conv import fold_weight_norm


def weight_norm(v: Tensor, gain: Tensor, *, transposed: bool = False) -> Tensor:
    """g v / |v| for each filter of v (D, C, kh, kw), or (C, D, kh, kw) if transposed.

    If autograd needs a gradient, a Triton kernel computes it on CUDA, and returns the dtype to
    which autocast casts a convolution's weight.
    """
    last = v.is_contiguous(memory_format=torch.channels_last)
    if (
        v.dtype == torch.float32
        and any(wanted_gradients((v, gain)))
        and (last or (v.is_contiguous() and not transposed))
        and takes_triton(v.device, v.dtype)
    ):
        return differentiable(True, v, gain, autocast_dtype(v) or v.dtype, transposed)
    return fold_weight_norm(v, gain, (0, 2, 3) if transposed else (1, 2, 3))


def _forward(
    compute: bool, v: Tensor, gain: Tensor, dtype: torch.dtype, transposed: bool
) -> tuple[Tensor, Tensor]:
    """The weight and the norms of its filters."""
    w, norm = torch.empty_like(v, dtype=dtype), torch.empty_like(gain)
    if compute:
        from ..kernels import weight_norm as kernels

        kernels.fold(v, gain, w, norm, transposed)
    return w, norm


def _backward(
    compute: bool,
    grad: Tensor,
    norm: Tensor,
    v: Tensor,
    gain: Tensor,
    dtype: torch.dtype,
    transposed: bool,
    needs: list[bool],
) -> Grads:
    grads = torch.empty_like(v), torch.empty_like(gain)
    if compute:
        from ..kernels import weight_norm as kernels

        last = v.is_contiguous(memory_format=torch.channels_last)
        order = torch.channels_last if last else torch.contiguous_format
        dw = grad.contiguous(memory_format=order)
        kernels.fold_gradient(dw, norm, v, gain, grads, transposed)
    return [tensor if need else None for tensor, need in zip(grads, needs, strict=True)]


differentiable, forward_op, backward_op = register_op(
    "weight_norm_triton",
    ("Tensor v", "Tensor gain"),
    "ScalarType dtype, bool transposed",
    1,
    _forward,
    _backward,
)
