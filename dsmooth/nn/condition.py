"""What an image is conditioned on, as the vector that enters every gated resnet."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def condition_vectors(
    label: Tensor | None, n_classes: int, batch: int, like: Tensor
) -> Tensor | None:
    """The vectors (B, D) of a batch in the dtype and on the device of `like`; None where D is 0.

    label: (B,) int64 classes, which become one-hot vectors, or (B, n_classes) floating point, the
    vectors themselves. Raises as `check_label` does, and ValueError for one on another device.
    """
    check_label(label, n_classes, batch)
    if label is None:
        return None
    if label.device != like.device:
        raise ValueError(f"label must be on {like.device}, got {label.device}")
    if label.is_floating_point():
        return label.to(like.dtype)
    return F.one_hot(label, n_classes).to(like.dtype)


def check_label(label: Tensor | None, n_classes: int, batch: int) -> None:
    """Raise ValueError or TypeError unless `label` is that of `batch` images of `n_classes`.

    None where n_classes is 0. Values are looked at on the CPU alone: elsewhere that would wait.
    """
    if n_classes == 0:
        if label is not None:
            raise ValueError("label was given, but the model has n_classes=0")
        return
    if label is None:
        raise ValueError(f"label is missing: the model has n_classes={n_classes}")
    if not isinstance(label, Tensor):
        raise TypeError(f"label must be a tensor, got {type(label).__name__}")
    soft = label.is_floating_point()
    shape = (batch, n_classes) if soft else (batch,)
    if label.shape != shape:
        raise ValueError(f"label must have shape {shape}, got {tuple(label.shape)}")
    if not soft and label.dtype != torch.int64:
        raise TypeError(f"label must be int64 or floating point, got {label.dtype}")
    if soft or label.device.type != "cpu" or not batch or torch.compiler.is_compiling():
        return
    low, high = int(label.min()), int(label.max())
    if low < 0 or high >= n_classes:
        raise ValueError(f"label must lie in 0 .. {n_classes - 1}, got {low} .. {high}")
