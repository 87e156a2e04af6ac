"""Samplers and the counter-based randomness they share."""

from .sequential import sequential_sample

__all__ = ["draw", "sequential_sample"]

# The fastest sampler there is for a model where it runs.
draw = sequential_sample
