"""Data sets: readers, the embedded MNIST subset, and the order in which training visits images.

A name is imported when it is first used, Pillow only to decode image files, and torchvision only
to download, to read CIFAR-10's Python files and to check packed files of Fashion-MNIST.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .arrays import own_images
    from .dataset import ImageDataset, to_bytes, to_float
    from .load import DATASETS, SPLITS, load_dataset
    from .order import epoch_order, indices_at

__all__ = [
    "DATASETS",
    "SPLITS",
    "ImageDataset",
    "epoch_order",
    "indices_at",
    "load_dataset",
    "own_images",
    "to_bytes",
    "to_float",
]

_HOMES = {
    "DATASETS": "load",
    "SPLITS": "load",
    "ImageDataset": "dataset",
    "epoch_order": "order",
    "indices_at": "order",
    "load_dataset": "load",
    "own_images": "arrays",
    "to_bytes": "dataset",
    "to_float": "dataset",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
