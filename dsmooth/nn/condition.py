"""Classes and noise levels as the vector that enters every gated resnet."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ..config import Conditioning, ModelConfig
from .images import check_like


class Condition(NamedTuple):
    """The images, classes and noise levels that a batch is conditioned on; None where not.

    context: (B, C, H, W), like x, for a conditioned model only. label: (B,) int64 in
    0 .. n_classes - 1, or (B, n_classes) floating point for soft classes; for a model with classes
    only. level: (B,) int64, the index of each image's noise among the model's noise_levels, if it
    has some.
    """

    context: Tensor | None = None
    label: Tensor | None = None
    level: Tensor | None = None


def condition_vectors(
    condition: Condition, config: ModelConfig, batch: int, like: Tensor
) -> Tensor | None:
    """The vectors (B, D) of a batch in the dtype and on the device of `like`; None where D is 0.

    They are the label's, one-hot or soft, and then the level's, one-hot. Raises as `check_label`
    does, and ValueError for one on another device.
    """
    sizes = {"label": config.condition_size, "level": len(config.noise_levels)}
    parts: list[Tensor] = []
    for name, size in sizes.items():
        values = getattr(condition, name)
        check_label(values, size, batch, name)
        if values is None:
            continue
        if values.device != like.device:
            raise ValueError(f"{name} must be on {like.device}, got {values.device}")
        vectors = values if values.is_floating_point() else F.one_hot(values, size)
        parts.append(vectors.to(like.dtype))
    return torch.cat(parts, dim=1) if parts else None


def check_context(context: Tensor | None, conditioning: Conditioning, like: Tensor) -> None:
    """Raise ValueError or TypeError unless a model gets the context that it takes, like `like`."""
    if conditioning == "none":
        if context is not None:
            raise ValueError('context was given, but the model has conditioning="none"')
    elif context is None:
        raise ValueError(f'context is missing: the model has conditioning="{conditioning}"')
    else:
        check_like("context", context, like)


def check_label(values: Tensor | None, size: int, batch: int, name: str = "label") -> None:
    """Raise ValueError or TypeError unless `values` are the labels (`name`) of `batch` images.

    size: the number of classes or noise levels of the model; if 0, `values` must be None. Values on
    a GPU are not read, since that would wait for the GPU.
    """
    of_classes = name == "label"
    if size == 0:
        if values is not None:
            has = "n_classes=0" if of_classes else "no noise_levels"
            raise ValueError(f"{name} was given, but the model has {has}")
        return
    if values is None:
        has = f"n_classes={size}" if of_classes else f"{size} noise_levels; at_level fixes one"
        raise ValueError(f"{name} is missing: the model has {has}")
    if not isinstance(values, Tensor):
        raise TypeError(f"{name} must be a tensor, got {type(values).__name__}")
    soft = of_classes and values.is_floating_point()
    shape = (batch, size) if soft else (batch,)
    if of_classes and values.ndim == 2 and not soft:
        raise TypeError(f"label of shape (B, n_classes) must be floating point, got {values.dtype}")
    if values.shape != shape:
        raise ValueError(f"{name} must have shape {shape}, got {tuple(values.shape)}")
    if soft:
        return
    if values.dtype != torch.int64:
        expected = "int64 or floating point" if of_classes else "an int64 tensor"
        raise TypeError(f"{name} must be {expected}, got {values.dtype}")
    if values.device.type == "cpu" and len(values) and not torch.compiler.is_compiling():
        low, high = int(values.min()), int(values.max())
        if low < 0 or high >= size:
            raise ValueError(f"{name} must lie in 0 .. {size - 1}, got {low} .. {high}")
