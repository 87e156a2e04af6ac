"""The order of training images, as a function of (seed, images seen).

Nothing here has a state. A resumed run asks for the positions that it has not seen yet, and gets
the same images as an uninterrupted run. The permutation is made of Philox words, not of a library's
generator. So it stays the same over versions of torch and numpy.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from dsmooth.philox import Stream, image_words


# A batch smaller than the data set lies in at most two epochs. A permutation of a million images
# takes 8 MB.
@lru_cache(maxsize=2)
def _permutation(n: int, epoch: int, seed: int) -> Tensor:
    words = image_words(1, n, seed=seed, first_index=epoch, stream=Stream.ORDER)[0]
    # The high word moves to -2^31 .. 2^31 - 1 so that the 64-bit key fits a signed integer.
    keys = (words[:, 0] - (1 << 31)) * (1 << 32) + words[:, 1]
    return torch.argsort(keys, stable=True)  # equal keys stay in the order of their indices


def _check_size(n: int) -> None:
    if not 0 < n < 1 << 32:
        raise ValueError(f"n must lie in 1 .. 2**32 - 1 images, got {n}")


def epoch_order(n: int, epoch: int, seed: int) -> Tensor:
    """Return the permutation of 0 .. n - 1 in which epoch `epoch` (from 0) visits n images.

    Image i gets as its key the first two words of Philox at counter (i, epoch low, epoch high,
    ORDER); the permutation sorts these 64-bit keys, equal ones by index. Returns (n,) int64.
    Raises ValueError for n, epoch or seed out of range.
    """
    _check_size(n)
    if epoch < 0:
        raise ValueError(f"epoch must be 0 or more, got {epoch}")
    return _permutation(n, epoch, seed).clone()


def indices_at(n: int, images_seen: int, batch_size: int, seed: int) -> Tensor:
    """Return the image indices of positions images_seen .. images_seen + batch_size - 1.

    Position p of the stream is entry p % n of the permutation of epoch p // n: batches run across
    epochs, and nothing is dropped. Returns (batch_size,) int64.
    Raises ValueError for an argument out of range.
    """
    _check_size(n)
    if images_seen < 0:
        raise ValueError(f"images_seen must be 0 or more, got {images_seen}")
    if batch_size < 1:
        raise ValueError(f"batch_size must be 1 or more, got {batch_size}")
    pieces = []
    position, end = images_seen, images_seen + batch_size
    while position < end:
        epoch, start = divmod(position, n)
        stop = min(n, start + end - position)
        pieces.append(_permutation(n, epoch, seed)[start:stop])
        position += stop - start
    return torch.cat(pieces)
