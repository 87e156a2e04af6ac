"""The subset of MNIST inside the package."""

from __future__ import annotations

from pathlib import Path

import torch

from .dataset import ImageDataset
from .reading import read_npz

SUBSET_PATH = Path(__file__).with_name("mnist_subset.npz")


def load_embedded_mnist(split: str) -> ImageDataset:
    """The subset in the package, in rounds of one of each digit: any prefix is balanced."""
    images, labels = map(
        torch.from_numpy, read_npz(SUBSET_PATH, (f"{split}_images", f"{split}_labels")).values()
    )
    source = f"embedded MNIST subset ({len(images):,} images)"
    names = tuple("0123456789")
    return ImageDataset(images[:, None], labels.long(), "mnist", split, source, class_names=names)
