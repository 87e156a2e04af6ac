"""The order of training images, their flips and transforms, as functions of (seed, images seen).

Nothing here has a state. A resumed run asks for the positions that it has not seen yet, and gets
the same images as an uninterrupted run. The permutation is made of Philox words, not of a library's
generator. So it stays the same over versions of torch and numpy.
"""

from __future__ import annotations

import random
from contextlib import ExitStack
from functools import lru_cache

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..fields import check_number
from ..functional.image_words import image_words
from ..philox import Stream
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


def flips(
    first: int | Tensor, count: int, *, seed: int, device: torch.device | str = "cpu"
) -> Tensor:
    """Fair coins of stream positions first .. first + count - 1: (count,) bool, True for a flip.

    They are the highest bits of Philox's first words at (0, position low, position high, FLIP).
    """
    words = image_words(count, 1, seed=seed, first_index=first, stream=Stream.FLIP, device=device)
    return words[:, 0, 0] >= 1 << 31


def hide_labels(
    labels: Tensor, fraction: float, n_classes: int, first: int | Tensor, seed: int
) -> Tensor:
    """labels (B,) int64 as one-hot vectors (B, n_classes), zeros for a `fraction` of the images.

    The label at stream position first + b is hidden if Philox's first word at (0, position low,
    position high, LABEL) is below fraction * 2**32.
    """
    words = image_words(
        len(labels), 1, seed=seed, first_index=first, stream=Stream.LABEL, device=labels.device
    )
    shown = words[:, 0, 0] >= int(fraction * 2**32)
    return F.one_hot(labels, n_classes) * shown[:, None].float()


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


def send(source: Tensor, target: Tensor) -> None:
    """Copy from the host to a device, without waiting."""
    # From pinned memory a copy is queued behind a GPU's earlier work.
    target.copy_(source.pin_memory() if target.is_cuda else source, non_blocking=True)


class ImagesOnDevice:
    """The batches of training images on a device, one at a time."""

    def __init__(
        self,
        dataset: ImageDataset,
        labels: Tensor | None,
        batch_size: int,
        seed: int,
        device: torch.device,
    ) -> None:
        self.n, self.batch_size, self.seed = len(dataset), batch_size, seed
        self.dataset, self.labels = dataset, labels
        self.buffers = [
            part.new_zeros((batch_size, *part.shape[1:]), device=device)
            for part in self.batch_at(0, 1)
        ]

    def batch_at(self, images_seen: int, count: int) -> list[Tensor]:
        """Images at positions from images_seen on, and their labels if there are any."""
        indices = indices_at(self.n, images_seen, count, self.seed)
        x = self.dataset.images.index_select(0, indices)
        if self.dataset.transform is not None:
            x = transformed(x, self.dataset.transform, seed=self.seed, first=images_seen)
        return [x] if self.labels is None else [x, self.labels.index_select(0, indices)]

    def prepare(self, images_seen: int) -> None:
        """Send the batch at a position, without waiting."""
        batch = self.batch_at(images_seen, self.batch_size)
        for x, buffer in zip(batch, self.buffers, strict=True):
            send(x, buffer)

    def part(self, first: int, count: int) -> tuple[Tensor, Tensor | None]:
        """Images first .. first + count - 1 of the prepared batch, and their labels."""
        images, *labels = (buffer[first : first + count].clone() for buffer in self.buffers)
        return images, labels[0] if labels else None
