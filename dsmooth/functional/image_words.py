"""Random words of images (`dsmooth.philox`); on CUDA one kernel computes the same words."""

from __future__ import annotations

import torch
from torch import Tensor

from .. import philox
from ..philox import Stream, seed_words, stream_word, whole_index
from .dispatch import takes_triton


def image_words(
    n_images: int,
    n_counters: int,
    *,
    seed: int | Tensor,
    first_index: int | Tensor = 0,
    stream: Stream,
    repeat: int = 0,
    device: torch.device | str = "cpu",
) -> Tensor:
    """`philox.image_words`: (n_images, n_counters, 4) int64."""
    device = torch.device(device)
    if not takes_triton(device):
        return philox.image_words(
            n_images, n_counters, seed=seed, first_index=first_index, stream=stream, repeat=repeat,
            device=device,
        )  # fmt: skip
    from ..kernels import philox as kernels

    index = _checked(n_images, seed, first_index, device)
    return kernels.image_words(n_images, n_counters, seed, index, stream_word(stream, repeat))


def image_noise(
    table: Tensor,
    n_images: int,
    size: int,
    *,
    seed: int | Tensor,
    first_index: int | Tensor,
    stream: Stream,
    repeat: int = 0,
) -> Tensor:
    """Entries of `table` (2**23,) at the upper 23 bits of the first `size` words of each image.

    Returns (n_images, size). Uses Triton: check `takes_triton` for the table's device first.
    """
    from ..kernels import philox as kernels

    index = _checked(n_images, seed, first_index, table.device)
    return kernels.noise(n_images, size, table, seed, index, stream_word(stream, repeat))


def _checked(
    n_images: int, seed: int | Tensor, first_index: int | Tensor, device: torch.device
) -> Tensor:
    """The index of the first image as a tensor. Raises ValueError for a number out of range."""
    seed_words(seed)
    if isinstance(first_index, Tensor):
        return first_index
    first = whole_index(first_index, n_images)
    return torch.full((), first, dtype=torch.int64, device=device)
