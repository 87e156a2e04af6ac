"""Context images and classes as a network takes them, and what is refused."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ..config import Conditioning
from ..functional.checks import check_tensor
from .images import check_like


def label_vectors(label: Tensor | None, n_classes: int, batch: int, like: Tensor) -> Tensor | None:
    """The classes (B, n_classes) of a batch, one-hot or soft, in the dtype of `like`.

    None for a model without classes. Raises as `check_label` does.
    """
    check_label(label, n_classes, batch, like.device)
    if label is None:
        return None
    vectors = label if label.is_floating_point() else F.one_hot(label, n_classes)
    return vectors.to(like.dtype)


def check_context(context: Tensor | None, conditioning: Conditioning, like: Tensor) -> None:
    """Raise ValueError or TypeError unless a model gets the context that it takes, like `like`."""
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
    """Raise ValueError or TypeError unless `label` has the classes of `batch` images.

    It must be None for a model without classes, else on `device` if one is given. Values on a GPU
    are not read, since that would wait for the GPU.
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
