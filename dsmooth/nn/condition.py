"""Classes and noise levels as the vector that enters every gated resnet."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ..config import ModelConfig


def condition_vectors(
    label: Tensor | None, level: Tensor | None, config: ModelConfig, batch: int, like: Tensor
) -> Tensor | None:
    """The vectors (B, D) of a batch in the dtype and on the device of `like`; None where D is 0.

    label: (B,) int64 classes, which become one-hot vectors, or (B, n_classes) floating point, the
    vectors themselves. level: (B,) int64, which become one-hot vectors behind these. Raises as
    `check_label` and `check_level` do, and ValueError for one on another device.
    """
    sizes = {"label": config.condition_size, "level": len(config.noise_levels)}
    check_label(label, sizes["label"], batch)
    check_level(level, sizes["level"], batch)
    parts: list[Tensor] = []
    for (name, size), values in zip(sizes.items(), (label, level), strict=True):
        if values is None:
            continue
        if values.device != like.device:
            raise ValueError(f"{name} must be on {like.device}, got {values.device}")
        vectors = values if values.is_floating_point() else F.one_hot(values, size)
        parts.append(vectors.to(like.dtype))
    return torch.cat(parts, dim=1) if parts else None


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
    if not soft:
        _check_range("label", label, n_classes)


def check_level(level: Tensor | None, n_levels: int, batch: int) -> None:
    """Raise ValueError or TypeError unless `level` is that of `batch` images, one of `n_levels`.

    None where n_levels is 0.
    """
    if n_levels == 0:
        if level is not None:
            raise ValueError("level was given, but the model has no noise_levels")
        return
    if level is None:
        raise ValueError(
            f"level is missing: the model has {n_levels} noise_levels; at_level fixes one"
        )
    if not isinstance(level, Tensor) or level.dtype != torch.int64:
        raise TypeError(f"level must be an int64 tensor, got {level!r}")
    if level.shape != (batch,):
        raise ValueError(f"level must have shape ({batch},), got {tuple(level.shape)}")
    _check_range("level", level, n_levels)


def _check_range(name: str, values: Tensor, size: int) -> None:
    """Raise ValueError unless 0 <= values < size, on the CPU: elsewhere looking would wait."""
    if values.device.type != "cpu" or not len(values) or torch.compiler.is_compiling():
        return
    low, high = int(values.min()), int(values.max())
    if low < 0 or high >= size:
        raise ValueError(f"{name} must lie in 0 .. {size - 1}, got {low} .. {high}")
