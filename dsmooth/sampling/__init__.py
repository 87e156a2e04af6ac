"""Samplers and the counter-based randomness they share."""

from .cached import CachedSampler
from .sequential import sequential_sample

__all__ = ["CachedSampler", "sample_images", "sequential_sample"]

# The fastest sampler there is for a model where it runs.
sample_images = sequential_sample
