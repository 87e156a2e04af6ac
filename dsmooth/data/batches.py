"""Batches of training images on a device; their flips and dropped labels are functions of (seed,
images seen)."""

from __future__ import annotations

import torch
from torch import Tensor

from ..functional.device_words import device_words
from ..philox import Stream
from .dataset import ImageDataset
from .order import indices_at


def flips(
    first: int | Tensor, count: int, *, seed: int, device: torch.device | str = "cpu"
) -> Tensor:
    """Fair coins of stream positions first .. first + count - 1: (count,) bool, True for a flip.

    They are the highest bits of Philox's first words at (0, position low, position high, FLIP).
    """
    words = device_words(count, 1, seed=seed, first_index=first, stream=Stream.FLIP, device=device)
    return words[:, 0, 0] >= 1 << 31


def drop_labels(labels: Tensor, fraction: float, first: int | Tensor, seed: int) -> Tensor:
    """labels (B,) int64, -1 for a `fraction` of the images.

    The label at stream position first + b is dropped if Philox's first word at (0, position low,
    position high, LABEL) is below fraction * 2**32.
    """
    words = device_words(
        len(labels), 1, seed=seed, first_index=first, stream=Stream.LABEL, device=labels.device
    )
    kept = words[:, 0, 0] >= int(fraction * 2**32)
    return torch.where(kept, labels, -1)


def send(source: Tensor, target: Tensor) -> None:
    """Copy from the host to a device, without waiting."""
    # A copy from pinned memory is queued after the GPU's earlier work.
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
