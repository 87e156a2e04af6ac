"""Samplers: the specification, the cached one, and images into files."""

from .cached import CachedSampler, sample_images
from .known import keep_top
from .request import Choices
from .sequential import sequential_sample

__all__ = [
    "CachedSampler",
    "Choices",
    "keep_top",
    "sample_images",
    "sequential_sample",
]
