"""Samplers and the counter-based randomness they share."""

from .auto import sample_images
from .cached import CachedSampler
from .sequential import sequential_sample

__all__ = ["CachedSampler", "sample_images", "sequential_sample"]
