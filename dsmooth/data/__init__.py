"""Data sets: readers, the embedded MNIST subset, and the order in which training visits images.

Pillow is imported to decode image files alone, and torchvision to download, to read CIFAR-10's
Python files and to check packed files of Fashion-MNIST.
"""

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
