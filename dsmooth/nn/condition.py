"""The condition of a network: context images and classes."""

from __future__ import annotations

from collections.abc import Sequence
from operator import index
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from .._extension import warn_once
from ..config import Classes, Conditioning
from ..fields import SettingError, check_number, check_one_of, check_tensor

# The label of an image without a class, as in label dropout.
NO_CLASS = -1
UNTRAINED = (
    "images without a class were never trained: the model was trained without label dropout, so "
    "numbers and images with the label -1 mean little; give a class"
)
# The class of all images, by number or name, or that of each: (B,), names or int64.
ClassLabel = int | str | Sequence[int] | Sequence[str] | NDArray[Any] | Tensor


def log_prior(classes: Classes | None, device: torch.device | None = None) -> Tensor:
    """log p(class) of each class, from frequencies in the training images: (K,) float64."""
    count = len(classes.names) if classes else 0
    shares = classes.shares if classes and classes.shares else [1 / count] * count if count else []
    return torch.tensor(shares, dtype=torch.float64, device=device).log()


def class_number(label: Any, classes: Classes) -> int:
    """The number of a class, given that or its name; -1 stays. SettingError for other labels."""
    is_named = any(map(str.isdecimal, classes.names))
    if isinstance(label, str) and label.isdecimal() and not is_named:
        label = int(label)  # as a command has it; names that are numbers come first
    if isinstance(label, str):
        check_one_of("label", label, classes.names)
        return classes.names.index(label)
    check_number("label", label, NO_CLASS, len(classes.names) - 1)
    return index(label)


def labels_of(
    label: ClassLabel | None,
    classes: Classes | None,
    batch: int,
    device: torch.device | str | None = None,
) -> Tensor | None:
    """The labels (B,) int64 of `batch` images, -1 for no class; None for a model without classes.

    label: one class for all images or one for each, by numbers or by names. A tensor must be on the
    device; what is on a GPU is not checked, to avoid a sync. Raises ValueError or TypeError for
    other labels, for a label of a model without classes, and for none of a model with some.
    """
    if classes is None:
        if label is not None:
            raise SettingError("label", "was given, but the model has no classes")
        return None
    if label is None:
        hint = "" if classes.dropout else ", and was trained without label dropout"
        raise SettingError("label", f"is missing: the model has {len(classes.names)} classes{hint}")
    if isinstance(label, np.ndarray):
        label = torch.from_numpy(label.copy()) if label.ndim else label.item()
    if isinstance(label, list | tuple):
        label = torch.tensor([class_number(one, classes) for one in label], device=device).long()
    if not isinstance(label, Tensor) or label.ndim == 0:
        label = torch.full((batch,), class_number(label, classes), device=device)
    place = None if device is None else torch.device(device)
    check_tensor("label", label, (batch,), place, (torch.int64,))
    if label.device.type == "cpu" and len(label) and not torch.compiler.is_compiling():
        for number in map(int, label.aminmax()):
            class_number(number, classes)
        if classes.dropout == 0 and bool((label == NO_CLASS).any()):
            warn_once(UNTRAINED)
    return label


def one_hot(label: Tensor | None, n_classes: int, like: Tensor) -> Tensor | None:
    """The vectors (B, n_classes) of labels (B,), zeros for no class, in the dtype of `like`."""
    return None if label is None else F.one_hot(label + 1, n_classes + 1)[:, 1:].to(like.dtype)


def check_context(context: Tensor | None, conditioning: Conditioning, like: Tensor) -> None:
    """Raise ValueError or TypeError unless the context fits the model, and is like `like`."""
    if (context is None) != (conditioning == "none"):
        found = "context is missing" if context is None else "context was given"
        raise ValueError(f'{found}, but the model has conditioning="{conditioning}"')
    if context is not None:
        check_tensor("context", context, tuple(like.shape), like.device, (like.dtype,))
