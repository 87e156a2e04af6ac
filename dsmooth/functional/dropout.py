"""Dropout as a function of a seed and the number of the element."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from ..philox import Stream, philox4x32


def draw_seed(device: torch.device) -> Tensor:
    """A seed of dropout from torch's generator of the device: int64, no dimensions."""
    return torch.randint(2**63 - 1, (), dtype=torch.int64, device=device)


def dropout_factors(
    shape: torch.Size, dropout: float, seed: Tensor, layer: int, first_image: int = 0
) -> Tensor:
    """The factors of dropout, for concat_elu(h) of `shape` (B, 2F, H, W): 0 or 1 / (1 - dropout).

    Elements are numbered in (B, H, W, 2F) order, as those of images first_image and on of a larger
    batch. Number i takes word i % 4 of the Philox call at
    counter (i // 4 low, i // 4 high, layer, Stream.DROPOUT), key `seed`. It is kept if that word's
    uniform is at least `dropout`. Returns float64 of that shape, on the seed's device.
    """
    low = 0xFFFFFFFF
    batch, channels, rows, cols = shape
    count = batch * channels * rows * cols
    first = first_image * (count // max(batch, 1))
    call = torch.arange(first // 4, (first + count + 3) // 4, device=seed.device)
    rest = [torch.full_like(call, word) for word in (layer & low, int(Stream.DROPOUT))]
    counter = torch.stack([call & low, call >> 32, *rest], dim=-1)
    key: Any = (seed & low, seed >> 32 & low)  # tensors: reading them would wait for a GPU
    words = philox4x32(counter, key).flatten()[first % 4 :][:count]
    kept = (words >> 9) >= keep_from(dropout)
    factors = kept.double() / (1 - dropout)
    return factors.view(batch, rows, cols, channels).permute(0, 3, 1, 2)


def keep_from(dropout: float) -> int:
    """The least n = word >> 9 whose uniform (n + 1/2) 2**-23 is at least `dropout`."""
    return math.ceil(dropout * 2**23 - 0.5)
