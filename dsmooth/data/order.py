"""The order of training images, as a function of (seed, images seen), and which are held out.

Nothing here has a state. A resumed run requests the positions that it has not seen yet, and gets
the same images as an uninterrupted run. The permutation is made of Philox words, not of a library's
generator. So it stays the same over versions of torch and numpy.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from functools import lru_cache

import torch
from torch import Tensor

from ..fields import check_numbers
from ..philox import Stream, image_words
from .dataset import ImageDataset

MOST_IMAGES = 2**32 - 1  # a word of Philox's counter
TEST_FRACTION = 0.1


# A batch smaller than the data set lies in at most two epochs. A permutation of a million images
# takes 8 MB.
@lru_cache(maxsize=2)
def _permutation(n: int, epoch: int, seed: int) -> Tensor:
    words = image_words(1, n, seed=seed, first_index=epoch, stream=Stream.ORDER)[0]
    # The high word moves to -2^31 .. 2^31 - 1 so that the 64-bit key fits a signed integer.
    keys = (words[:, 0] - (1 << 31)) * (1 << 32) + words[:, 1]
    return torch.argsort(keys, stable=True)  # equal keys stay in the order of their indices


def epoch_order(n: int, epoch: int, seed: int) -> Tensor:
    """Return the permutation of 0 .. n - 1 in which epoch `epoch` (from 0) visits n images.

    Image i gets as its key the first two words of Philox at counter (i, epoch low, epoch high,
    ORDER); the permutation sorts these 64-bit keys, equal ones by index. Returns (n,) int64.
    Raises ValueError for n, epoch or seed out of range.
    """
    check_numbers(n=(n, 1, MOST_IMAGES), epoch=(epoch, 0))
    return _permutation(n, epoch, seed).clone()


def choose_images(dataset: ImageDataset, count: int) -> Tensor:
    """`count` images, or all, in a fixed random order: the later ones may be harder, as MNIST's.

    Returns bytes (N, C, H, W).
    """
    return dataset.images[epoch_order(len(dataset), 0, 0)[:count]]


def indices_at(n: int, images_seen: int, batch_size: int, seed: int) -> Tensor:
    """Return the image indices of positions images_seen .. images_seen + batch_size - 1.

    Position p of the stream is entry p % n of the permutation of epoch p // n: batches run across
    epochs, and nothing is dropped. Returns (batch_size,) int64.
    Raises ValueError for an argument out of range.
    """
    check_numbers(n=(n, 1, MOST_IMAGES), images_seen=(images_seen, 0), batch_size=(batch_size,))
    end = images_seen + batch_size
    epochs = range(images_seen // n, (end - 1) // n + 1)
    pieces = [_permutation(n, e, seed)[max(0, images_seen - e * n) : end - e * n] for e in epochs]
    return torch.cat(pieces)


def held_out(keys: Sequence[int], classes: Sequence[Hashable]) -> list[bool]:
    """Whether each image is held out: about one in ten, and one at least.

    keys: 64 random bits of each image, equal ones of copies. Only they decide, so an image stays
    when others come or go. But of each class the image with the largest key is for training.
    """
    largest: dict[Hashable, int] = {}
    for key, name in zip(keys, classes, strict=True):
        largest[name] = max(key, largest.get(name, 0))
    limit, kept = int(TEST_FRACTION * 2**64), {*largest.values()}
    chosen = {key for key in keys if key <= limit} - kept or {min(keys)}
    return [key in chosen for key in keys]
