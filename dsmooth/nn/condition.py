"""The condition of a network: context images and classes."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from ..config import Classes, Conditioning
from ..errors import SettingError
from ..functional.checks import check_tensor
from ..progress import LOG
from .images import check_like


def zero_label(count: int, n_classes: int, like: Tensor | None = None) -> Tensor:
    """The label of images without a class, (count, n_classes), as in label dropout.

    like: tensor with the dtype and device, by default float32 on the CPU.
    """
    dtype, device = (torch.float32, None) if like is None else (like.dtype, like.device)
    return torch.zeros(count, n_classes, dtype=dtype, device=device)


@cache
def warn_untrained_zero_label() -> None:
    """Warn, once in a process, of a label of zeros for a model with hidden_labels 0."""
    LOG.warning(
        "the label of zeros was never trained: the model was trained without label dropout, so "
        "numbers and images with it mean little; give a class"
    )


def log_prior(classes: Classes, device: torch.device | None = None) -> Tensor:
    """log p(class) of each class, from frequencies in the training images: (K,) float64."""
    shares = classes.shares or [1 / max(classes.number, 1)] * classes.number
    return torch.tensor(shares, dtype=torch.float64, device=device).log()


def class_number(label: str | int, names: Sequence[str]) -> int | Literal["each"]:
    """The number of a class, given its name or number; "each" is kept. ValueError for other labels.

    A name takes precedence over a number. If both exist and differ, use "name:10" or "number:10".
    """
    if isinstance(label, int):
        return label
    if label == "each":
        return "each"
    kind, colon, value = label.partition(":")
    kind, value = (kind, value) if colon and kind in ("name", "number") else ("", label)
    by_name = names.index(value) if kind != "number" and value in names else None
    by_number = int(value) if kind != "name" and value.isdecimal() else None
    if by_name is not None and by_number is not None and by_name != by_number < len(names):
        raise SettingError(
            "label",
            f"{value} is the name of class {by_name} and the number of class "
            f"{names[by_number]}: write name:{value} or number:{value}",
        )
    number = by_number if by_name is None else by_name
    if number is None:
        known = f" or one of {', '.join(names)}" if names else ""
        raise SettingError("label", f"must be each, a number{known}, got {label}")
    return number


def label_vectors(
    label: Tensor | None,
    n_classes: int,
    batch: int,
    like: Tensor,
    hidden_labels: float | None = None,
) -> Tensor | None:
    """The classes (B, n_classes) of a batch, one-hot or soft, in the dtype of `like`, or None.

    hidden_labels: of the model; with 0 a label of zeros gives a warning, except on a GPU.
    """
    check_label(label, n_classes, batch, like.device)
    if label is None:
        return None
    if not label.is_floating_point():
        return F.one_hot(label, n_classes).to(like.dtype)
    is_checked = label.device.type == "cpu" and not torch.compiler.is_compiling()
    if hidden_labels == 0 and is_checked and not label.any(1).all():
        warn_untrained_zero_label()
    return label.to(like.dtype)


def check_context(context: Tensor | None, conditioning: Conditioning, like: Tensor) -> None:
    """Raise ValueError or TypeError unless the context fits the model, and is like `like`."""
    if conditioning == "none":
        if context is not None:
            raise ValueError('context was given, but the model has conditioning="none"')
    elif context is None:
        raise ValueError(f'context is missing: the model has conditioning="{conditioning}"')
    else:
        check_like("context", context, like)


def check_label(
    label: Tensor | None, n_classes: int, batch: int, device: torch.device | None = None
) -> None:
    """Raise ValueError or TypeError unless `label` holds the classes of `batch` images.

    It must be None for a model without classes. Values on a GPU are not checked, to avoid a sync.
    """
    if n_classes == 0:
        if label is not None:
            raise ValueError("label was given, but the model has n_classes=0")
        return
    if label is None:
        raise ValueError(f"label is missing: the model has n_classes={n_classes}")
    soft = isinstance(label, Tensor) and label.is_floating_point()
    if isinstance(label, Tensor) and label.ndim == 2 and not soft:
        raise TypeError(f"label of shape (B, n_classes) must be floating point, got {label.dtype}")
    check_tensor("label", label, (batch, n_classes) if soft else (batch,), device)
    if soft:
        return
    if label.dtype != torch.int64:
        raise TypeError(f"label must be int64 or floating point, got {label.dtype}")
    if label.device.type == "cpu" and len(label) and not torch.compiler.is_compiling():
        low, high = int(label.min()), int(label.max())
        if low < 0 or high >= n_classes:
            raise ValueError(f"label must lie in 0 .. {n_classes - 1}, got {low} .. {high}")
