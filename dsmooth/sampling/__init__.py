"""Samplers: the specification, the cached one, Jacobi iterations, and images into files."""

from .cached import CachedSampler, sample_images
from .known import keep_top
from .request import Choices
from .sequential import JacobiSamples, jacobi_sample, sequential_sample

__all__ = [
    "CachedSampler",
    "Choices",
    "JacobiSamples",
    "jacobi_sample",
    "keep_top",
    "sample_images",
    "sequential_sample",
]
