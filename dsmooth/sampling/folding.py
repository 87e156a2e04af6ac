"""Weights as the cached sampler takes them: norms folded, padded, split into bfloat16 parts."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from ..nn.layers import WeightNormConv

Array = np.ndarray
SPLIT_PARTS = 3  # bfloat16 values that a float32 is the sum of


def as_float64(parameter: Tensor) -> Array:
    """A copy in numpy: on a busy machine torch's threads would wait for one another."""
    values = parameter.detach()
    if values.dtype not in (torch.float32, torch.float64):
        values = values.float()
    return values.numpy(force=True).astype(np.float64)


def folded(layer: nn.Module) -> tuple[Array, Array]:
    """(weight, bias) with weight norm folded in float64."""
    assert isinstance(layer, WeightNormConv)
    v, g, bias = (as_float64(p) for p in (layer.weight_v, layer.weight_g, layer.bias))
    over = (0, 2, 3) if layer.transposed else (1, 2, 3)
    scale = g / np.sqrt(np.square(v).sum(over))
    return v * scale.reshape((1, -1, 1, 1) if layer.transposed else (-1, 1, 1, 1)), bias


def widen(weight: Array, channels: int) -> Array:
    """Zero weights for the channels that a cache has beyond those of (n, c, kh, kw)."""
    return np.pad(weight, ((0, 0), (0, channels - weight.shape[1]), (0, 0), (0, 0)))


def split(values: Array) -> list[Array]:
    """SPLIT_PARTS arrays of bfloat16 values whose sum is `values` to the rounding of float32."""
    parts = []
    for _ in range(SPLIT_PARTS):
        parts.append(torch.from_numpy(values).bfloat16().double().numpy())
        values = values - parts[-1]
    return parts
