"""Images and kernels as numbers: taps, strides, pixels. Needs no Triton."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

MAX_PIXELS = 2**31 - 2**10  # positions are 32-bit; the last block may be partly beyond the end


class Taps(NamedTuple):
    """Where tap (i, j) of a (kh, kw) kernel reads: stride * (row, col) + (i - top, j - left)."""

    kh: int
    kw: int
    top: int
    left: int
    stride: int = 1

    def constants(self) -> dict[str, int]:
        """The kernel and its padding as constexprs."""
        return {"KH": self.kh, "KW": self.kw, "TOP": self.top, "LEFT": self.left}


def strides_of(image: Tensor) -> tuple[int, int, int, int]:
    """Strides (image, row, column, channel) of a (B, C, H, W) tensor in any memory order."""
    batch, channel, row, col = image.stride()
    return batch, row, col, channel


def n_pixels(image: Tensor) -> int:
    """B H W. Raises ValueError where 32 bits cannot number the pixels."""
    count = image.shape[0] * image.shape[2] * image.shape[3]
    if count > MAX_PIXELS:
        raise ValueError(f"an image tensor must have at most {MAX_PIXELS} pixels, got {count}")
    return count


def empty_channels_last(like: Tensor, channels: int, size: tuple[int, int] | None = None) -> Tensor:
    """Uninitialised, with the batch, dtype and device of `like` and, without `size`, its extent."""
    return torch.empty(
        (like.shape[0], channels, *(size or like.shape[2:])),
        dtype=like.dtype,
        device=like.device,
        memory_format=torch.channels_last,
    )
