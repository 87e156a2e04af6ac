"""Samplers: the specification, the cached one, and images into files."""

from .cached import CachedSampler, sample_images
from .request import Choices, keep_top
from .sequential import sequential_sample

__all__ = [
    "CachedSampler",
    "Choices",
    "keep_top",
    "sample_images",
    "sequential_sample",
]
