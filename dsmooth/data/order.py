"""The order of training images and their flips, as functions of (seed, images seen).

Nothing here has a state. A resumed run asks for the positions that it has not seen yet, and gets
the same images as an uninterrupted run. The permutation is made of Philox words, not of a library's
generator. So it stays the same over versions of torch and numpy.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from ..philox import Stream, image_words


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


def _check_batch(batch_size: int) -> None:
    if batch_size < 1:
        raise ValueError(f"batch_size must be 1 or more, got {batch_size}")


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
    _check_batch(batch_size)
    pieces = []
    position, end = images_seen, images_seen + batch_size
    while position < end:
        epoch, start = divmod(position, n)
        stop = min(n, start + end - position)
        pieces.append(_permutation(n, epoch, seed)[start:stop])
        position += stop - start
    return torch.cat(pieces)


def flips(
    first: int | Tensor, count: int, *, seed: int, device: torch.device | str = "cpu"
) -> Tensor:
    """Fair coins of stream positions first .. first + count - 1: (count,) bool, True for a flip.

    The coin of a position is the highest bit of the first word of Philox at counter (0, position
    low, position high, FLIP). It is a function of (seed, position), however positions are batched.
    first: a number, or int64 without dimensions on `device`, which is not read back.
    Raises ValueError for a seed or a number out of range.
    """
    words = image_words(count, 1, seed=seed, first_index=first, stream=Stream.FLIP, device=device)
    return words[:, 0, 0] >= 1 << 31


class OrderOnDevice:
    """`indices_at` of positions that only the device knows.

    It holds the permutations of as many epochs as one batch can touch, and `prepare` puts the next
    batch's in place. Raises ValueError for n or batch_size out of range.
    """

    def __init__(self, n: int, batch_size: int, seed: int, device: torch.device) -> None:
        _check_size(n)
        _check_batch(batch_size)
        self.n, self.batch_size, self.seed = n, batch_size, seed
        rows = (n + batch_size - 2) // n + 1
        self.table = torch.zeros(rows, n, dtype=torch.int64, device=device)
        self.epochs = [-1] * rows  # the epoch of each row's permutation

    def prepare(self, images_seen: int) -> None:
        """Send the permutations of the batch at position images_seen that are not there yet."""
        last = images_seen + self.batch_size - 1
        for epoch in range(images_seen // self.n, last // self.n + 1):
            row = epoch % len(self.epochs)
            if self.epochs[row] != epoch:
                self.table[row].copy_(_permutation(self.n, epoch, self.seed))
                self.epochs[row] = epoch

    def indices(self, first: Tensor, count: int) -> Tensor:
        """The image indices of positions first .. first + count - 1: (count,) int64.

        first: int64 without dimensions. All positions lie in the batch that was prepared.
        """
        positions = first + torch.arange(count, device=self.table.device)
        return self.table.flatten()[positions % self.table.numel()]
