"""Checks of tensors that several ops share."""

from __future__ import annotations

import torch
from torch import Tensor


def check_tensor(
    name: str, tensor: object, shape: tuple[int, ...], device: torch.device | None = None
) -> None:
    """Raise TypeError for what is no tensor, ValueError for another shape or device."""
    if not isinstance(tensor, Tensor):
        raise TypeError(f"{name} must be a tensor, got {type(tensor).__name__}")
    if tensor.shape != shape:
        raise ValueError(f"{name} must have shape {shape}, got {tuple(tensor.shape)}")
    if device is not None and tensor.device != device:
        raise ValueError(f"{name} must be on {device}, got {tensor.device}")
