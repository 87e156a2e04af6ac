"""Samplers: the specification, the cached one, and images into files."""

from .draw import Choices
from .resolve import keep_top
from .samplers import CachedSampler, sample_images, sequential_sample

__all__ = [
    "CachedSampler",
    "Choices",
    "keep_top",
    "sample_images",
    "sequential_sample",
]
