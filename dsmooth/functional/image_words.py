"""Random words of images (`dsmooth.philox`); on CUDA one kernel computes the same words."""

from __future__ import annotations

from typing import TypedDict

import torch
from torch import Tensor
from typing_extensions import NotRequired, Unpack

from .. import philox
from ..philox import Stream, seed_words, stream_word, whole_index
from .dispatch import takes_triton


class Place(TypedDict):
    """The arguments of `philox.image_words` that select the words of an image."""

    seed: int | Tensor
    first_index: NotRequired[int | Tensor]
    stream: Stream
    repeat: NotRequired[int]


def image_words(
    n_images: int, n_counters: int, *, device: torch.device | str = "cpu", **place: Unpack[Place]
) -> Tensor:
    """`philox.image_words`: (n_images, n_counters, 4) int64."""
    device = torch.device(device)
    if not takes_triton(device):
        return philox.image_words(n_images, n_counters, device=device, **place)
    from ..kernels import philox as kernels

    return kernels.image_words(n_images, n_counters, *_checked(n_images, device, place))


def image_noise(table: Tensor, n_images: int, size: int, **place: Unpack[Place]) -> Tensor:
    """Entries of `table` (2**23,) at the upper 23 bits of the first `size` words of each image.

    Returns (n_images, size). Uses Triton: check `takes_triton` for the table's device first.
    """
    from ..kernels import philox as kernels

    return kernels.noise(n_images, size, table, *_checked(n_images, table.device, place))


def _checked(n_images: int, device: torch.device, place: Place) -> tuple[int | Tensor, Tensor, int]:
    """The seed, the index of the first image as a tensor, and the last word of a counter.

    Raises ValueError for numbers out of range.
    """
    seed, first, repeat = place["seed"], place.get("first_index", 0), place.get("repeat", 0)
    seed_words(seed)
    if not isinstance(first, Tensor):
        index = whole_index(first, n_images)
        first = torch.full((), index, dtype=torch.int64, device=device)
    return seed, first, stream_word(place["stream"], repeat)
