"""Checks of tensors that are arguments."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import torch
from torch import Tensor


def check_floating(name: str, tensor: object) -> None:
    """Raise TypeError unless `tensor` is a floating-point tensor."""
    if not isinstance(tensor, Tensor) or not tensor.is_floating_point():
        kind = tensor.dtype if isinstance(tensor, Tensor) else type(tensor).__name__
        raise TypeError(f"{name} must be a floating-point tensor, got {kind}")


def check_tensor(
    name: str,
    tensor: object,
    shape: Sequence[int | str],
    device: torch.device | None = None,
    dtypes: Collection[torch.dtype] = (),
) -> None:
    """Raise TypeError unless `tensor` is a tensor, ValueError for a wrong shape, device or dtype.

    shape: numbers, or letters for dimensions of any size. dtypes: the allowed ones; empty for any.
    """
    if not isinstance(tensor, Tensor):
        raise TypeError(f"{name} must be a tensor, got {type(tensor).__name__}")
    pairs = zip(shape, tensor.shape, strict=False)
    if tensor.ndim != len(shape) or any(n != m and not isinstance(n, str) for n, m in pairs):
        words = str(tuple(shape)).replace("'", "")
        raise ValueError(f"{name} must have shape {words}, got {tuple(tensor.shape)}")
    if device is not None and tensor.device != device:
        raise ValueError(f"{name} must be on {device}, got {tensor.device}")
    if dtypes and tensor.dtype not in dtypes:
        got, *names = (str(dtype).removeprefix("torch.") for dtype in (tensor.dtype, *dtypes))
        raise ValueError(f"{name} must be {' or '.join(names)}, got {got}")
