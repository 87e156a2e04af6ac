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
from .dataset import ImageDataset


# A batch smaller than the data set lies in at most two epochs. A permutation of a million images
# takes 8 MB.
@lru_cache(maxsize=2)
def _permutation(n: int, epoch: int, seed: int) -> Tensor:
    words = image_words(1, n, seed=seed, first_index=epoch, stream=Stream.ORDER)[0]
    # The high word moves to -2^31 .. 2^31 - 1 so that the 64-bit key fits a signed integer.
    keys = (words[:, 0] - (1 << 31)) * (1 << 32) + words[:, 1]
    return torch.argsort(keys, stable=True)  # equal keys stay in the order of their indices


def _check(n: int, **counts: int) -> None:
    """Raise ValueError for a number of images, or another, that is out of range."""
    if not 0 < n < 1 << 32:
        raise ValueError(f"n must lie in 1 .. 2**32 - 1 images, got {n}")
    for name, count in counts.items():
        least = int(name == "batch_size")
        if count < least:
            raise ValueError(f"{name} must be {least} or more, got {count}")


def epoch_order(n: int, epoch: int, seed: int) -> Tensor:
    """Return the permutation of 0 .. n - 1 in which epoch `epoch` (from 0) visits n images.

    Image i gets as its key the first two words of Philox at counter (i, epoch low, epoch high,
    ORDER); the permutation sorts these 64-bit keys, equal ones by index. Returns (n,) int64.
    Raises ValueError for n, epoch or seed out of range.
    """
    _check(n, epoch=epoch)
    return _permutation(n, epoch, seed).clone()


def indices_at(n: int, images_seen: int, batch_size: int, seed: int) -> Tensor:
    """Return the image indices of positions images_seen .. images_seen + batch_size - 1.

    Position p of the stream is entry p % n of the permutation of epoch p // n: batches run across
    epochs, and nothing is dropped. Returns (batch_size,) int64.
    Raises ValueError for an argument out of range.
    """
    _check(n, images_seen=images_seen, batch_size=batch_size)
    end = images_seen + batch_size
    epochs = range(images_seen // n, (end - 1) // n + 1)
    pieces = [_permutation(n, e, seed)[max(0, images_seen - e * n) : end - e * n] for e in epochs]
    return torch.cat(pieces)


def flips(
    first: int | Tensor, count: int, *, seed: int, device: torch.device | str = "cpu"
) -> Tensor:
    """Fair coins of stream positions first .. first + count - 1: (count,) bool, True for a flip.

    They are the highest bits of Philox's first words at (0, position low, position high, FLIP).
    """
    words = image_words(count, 1, seed=seed, first_index=first, stream=Stream.FLIP, device=device)
    return words[:, 0, 0] >= 1 << 31


class ImagesOnDevice:
    """A batch of training images on a device, by positions that only it knows."""

    def __init__(
        self,
        dataset: ImageDataset,
        labels: Tensor | None,
        batch_size: int,
        seed: int,
        device: torch.device,
    ) -> None:
        _check(len(dataset), batch_size=batch_size)
        self.n, self.batch_size, self.seed = len(dataset), batch_size, seed
        self.source = [dataset.images] if labels is None else [dataset.images, labels]
        self.there = [
            part.new_zeros((batch_size, *part.shape[1:]), device=device) for part in self.source
        ]
        self.first = torch.zeros((), dtype=torch.int64, device=device)  # position of the first

    def prepare(self, images_seen: int) -> None:
        """Send the batch at a position, without waiting."""
        indices = indices_at(self.n, images_seen, self.batch_size, self.seed)
        self.first.fill_(images_seen)
        for part, there in zip(self.source, self.there, strict=True):
            x = part.index_select(0, indices)
            # From pinned memory a copy is queued behind a GPU's earlier work.
            there.copy_(x.pin_memory() if there.is_cuda else x, non_blocking=True)

    def at(self, first: Tensor, count: int) -> tuple[Tensor, Tensor | None]:
        """Images and labels of positions first .. first + count - 1 of the prepared batch."""
        places = first - self.first + torch.arange(count, device=self.first.device)
        images, *labels = (there[places] for there in self.there)
        return images, labels[0] if labels else None
