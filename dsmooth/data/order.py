"""The order of training images and their transforms, as functions of (seed, images seen).

Nothing here has a state. A resumed run requests the positions that it has not seen yet, and gets
the same images as an uninterrupted run. The permutation is made of Philox words, not of a library's
generator. So it stays the same over versions of torch and numpy.
"""

from __future__ import annotations

import random
from contextlib import ExitStack
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from ..fields import check_number
from ..philox import Stream, image_words
from .dataset import ImageDataset, Transform

MOST_IMAGES = 2**32 - 1  # a word of Philox's counter


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
    check_number("n", n, 1, MOST_IMAGES)
    check_number("epoch", epoch, 0)
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
    check_number("n", n, 1, MOST_IMAGES)
    check_number("images_seen", images_seen, 0)
    check_number("batch_size", batch_size)
    end = images_seen + batch_size
    epochs = range(images_seen // n, (end - 1) // n + 1)
    pieces = [_permutation(n, e, seed)[max(0, images_seen - e * n) : end - e * n] for e in epochs]
    return torch.cat(pieces)


def transformed(images: Tensor, transform: Transform, *, seed: int, first: int) -> Tensor:
    """images (B, C, H, W), bytes, at stream positions first .. first + B - 1, each by `transform`.

    The random numbers that it draws of torch, numpy and random are a function of (seed, position).
    Raises ValueError for a transform that gives no bytes, or images of several shapes.
    """
    made: list[Tensor] = []
    words = image_words(len(images), 1, seed=seed, first_index=first, stream=Stream.TRANSFORM)
    with ExitStack() as kept:  # the global generators are left as they were
        kept.enter_context(torch.random.fork_rng(devices=[]))
        kept.callback(random.setstate, random.getstate())
        numpys = np.random.get_state()  # noqa: NPY002 - the generator that transforms draw from
        kept.callback(np.random.set_state, numpys)
        for image, (low, high) in zip(images, words[:, 0, :2].tolist(), strict=True):
            torch.default_generator.manual_seed(low | high << 32)  # and no device's
            random.seed(low | high << 32)
            np.random.seed(low)  # noqa: NPY002 - as above
            result = transform(image.clone())  # some write into their argument
            if not isinstance(result, Tensor) or result.dtype != torch.uint8 or result.ndim != 3:
                got = result.dtype if isinstance(result, Tensor) else type(result).__name__
                shape = tuple(getattr(result, "shape", ()))
                raise ValueError(
                    f"transform must make uint8 (C, H, W) of uint8 {tuple(image.shape)}, got {got} "
                    f"{shape}: leave out ToTensor, ToDtype and Normalize"
                )
            if made and result.shape != made[0].shape:
                raise ValueError(
                    f"transform must make images of one shape, got {tuple(made[0].shape)} and "
                    f"{tuple(result.shape)}: end it with a crop or a resize"
                )
            made.append(result)
    return torch.stack(made)
