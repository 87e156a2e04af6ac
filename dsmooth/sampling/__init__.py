"""Samplers: the specification, the cached one, Jacobi iterations, and drawing in chunks."""

from .auto import sample_images
from .cached import CachedSampler
from .jacobi import JacobiSamples, jacobi_sample
from .known import keep_top
from .sequential import sequential_sample

__all__ = [
    "CachedSampler",
    "JacobiSamples",
    "jacobi_sample",
    "keep_top",
    "sample_images",
    "sequential_sample",
]
