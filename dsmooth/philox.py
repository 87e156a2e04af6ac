"""Philox4x32-10: random words as a pure function of a key and a counter.

Source: Salmon et al., Parallel random numbers: as easy as 1, 2, 3 (SC 2011). Every random number
that determines a result comes from here, so a result depends only on its seed, not on batch size,
order, thread count or rank.
"""

from __future__ import annotations

from enum import IntEnum
from typing import SupportsIndex

import torch
from torch import Tensor

from .fields import check_number

_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)
_MASK = 0xFFFFFFFF


class Stream(IntEnum):
    """Use of a stream of random words: the low byte of the counter's last word.

    csrc/common/philox.h gives the same numbers to the streams that it names.
    """

    # 6, 7 and 8 are reserved: with other numbers for the streams every image would change.

    SAMPLE = 0  # pixels of a model without context
    SAMPLE_CONDITIONED = 1  # pixels of a model with context
    SMOOTHING = 2  # x~ given x
    ORDER = 3  # the order of training images in an epoch
    CLEAN_NOISE = 4  # the paper's x + 0.01 n
    DROPOUT = 5
    FLIP = 9  # horizontal flips of training images
    CLASS = 10  # the class of an image, drawn from the prior
    # 11 is reserved.
    HELD_OUT = 12  # the images of one's own that are held out
    LABEL = 13  # the training images whose class is hidden


def seed_words(seed: SupportsIndex | Tensor) -> tuple[int, int] | tuple[Tensor, Tensor]:
    """The key (low word, high word) of a seed.

    seed: a number, with ValueError outside 0 <= seed < 2**64; or an int64 scalar tensor, which is
    not checked: that would sync with the GPU.
    """
    if isinstance(seed, Tensor):
        return seed & _MASK, seed >> 32 & _MASK
    check_number("seed", seed, 0, 2**64 - 1)
    seed = seed.__index__()
    return seed & _MASK, seed >> 32


def draw_seed(device: torch.device) -> Tensor:
    """A seed from torch's generator of a device, as an int64 scalar tensor, without a sync."""
    return torch.randint(2**63 - 1, (), dtype=torch.int64, device=device)


def whole_index(first_index: SupportsIndex, n_images: int) -> int:
    """The index of the first image as an int. Raises ValueError if an index is out of range."""
    check_number("first_index", first_index, 0, 2**63 - 1 - n_images)
    return first_index.__index__()


def stream_word(stream: Stream, repeat: int) -> int:
    """The last word of a counter. Raises ValueError for a repeat or a stream out of range."""
    check_number("repeat", repeat, 0, 2**24 - 1)
    return int(Stream(stream)) | repeat << 8


def philox4x32(counter: Tensor, key: tuple[int, int] | tuple[Tensor, Tensor]) -> Tensor:
    """Ten rounds of Philox4x32 on 32-bit words held in int64.

    counter: (..., 4) int64, taken modulo 2**32; key: two words, integers or tensors.
    Returns (..., 4) int64, each entry a uniform 32-bit word.
    """
    c0, c1, c2, c3 = (counter & _MASK).unbind(-1)
    k0, k1 = key
    for _ in range(10):
        # The low 64 bits of a product are correct even if int64 wraps; >> is arithmetic, hence &.
        p0, p1 = c0 * _MULTIPLIERS[0], c2 * _MULTIPLIERS[1]
        c0, c1, c2, c3 = (
            ((p1 >> 32) & _MASK) ^ c1 ^ k0,
            p1 & _MASK,
            ((p0 >> 32) & _MASK) ^ c3 ^ k1,
            p0 & _MASK,
        )
        k0, k1 = (k0 + _WEYL[0]) & _MASK, (k1 + _WEYL[1]) & _MASK
    return torch.stack([c0, c1, c2, c3], dim=-1)


def to_uniform(words: Tensor) -> Tensor:
    """Map 32-bit words to (0, 1): ((word >> 9) + 1/2) * 2**-23, exact in float32 and float64."""
    return ((words >> 9).double() + 0.5) * 2.0**-23


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
    """Random words of images first_index .. first_index + n_images - 1.

    The counter is (i, image index low, image index high, stream | repeat << 8) for i = 0 ..
    n_counters - 1. seed, first_index: numbers, or int64 scalar tensors on `device`, which are
    not checked. Returns (n_images, n_counters, 4) int64.
    Raises ValueError for a seed, an index, a stream or a repeat out of range.
    """
    if not isinstance(first_index, Tensor):
        first_index = whole_index(first_index, n_images)
    last_word = stream_word(stream, repeat)
    index = first_index + torch.arange(n_images, device=device)[:, None]
    position = torch.arange(n_counters, device=device)[None, :]
    counter = torch.stack(
        torch.broadcast_tensors(
            position, index & _MASK, index >> 32, torch.full((), last_word, device=device)
        ),
        dim=-1,
    )
    return philox4x32(counter, seed_words(seed))
