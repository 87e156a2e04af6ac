"""The classes of the images of a draw."""

from __future__ import annotations

import hashlib
from typing import Literal

import torch
from torch import Tensor

from ..nn.condition import check_label

# One class for all images; the classes in turn; or (count,) int64, or (count, n_classes) soft.
Label = int | Literal["each"] | Tensor | None


def check_count(label: Label, count: int) -> None:
    """Raise ValueError for what is no `Label` of `count` images, of however many classes."""
    if isinstance(label, Tensor):
        if label.ndim not in (1, 2) or len(label) != count:
            raise ValueError(
                f"label must have shape ({count},) or ({count}, n_classes), got "
                f"{tuple(label.shape)}"
            )
    elif label is not None and label != "each":
        whole = isinstance(label, int) and not isinstance(label, bool)
        if not whole or not 0 <= label < 2**63:
            raise ValueError(f'label must be a class, "each" or a tensor, got {label!r}')


def labels_of(
    label: Label, n_classes: int, first_index: int, count: int, device: torch.device | str = "cpu"
) -> Tensor | None:
    """The labels of images first_index .. first_index + count - 1, as a model takes them.

    On `device`: a class and "each" are made there, so that a CUDA graph can capture it. Raises
    ValueError or TypeError, as `check_label` does, for what a model of `n_classes` does not take.
    """
    if isinstance(label, str):
        modulus = max(n_classes, 1)
        label = (torch.arange(count, device=device) + first_index % modulus) % modulus
    elif isinstance(label, int):
        if 0 < n_classes <= label:
            raise ValueError(f"label must lie in 0 .. {n_classes - 1}, got {label}")
        label = torch.full((count,), label, device=device)
    check_label(label, n_classes, count)
    return None if label is None else label.to(device)


def described(label: Label) -> int | str | None:
    """A label as JSON; for a tensor its SHA-256."""
    if not isinstance(label, Tensor):
        return label
    values = label.detach().cpu().contiguous()
    return hashlib.sha256(values.view(torch.uint8).numpy().tobytes()).hexdigest()
