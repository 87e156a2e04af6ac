"""Samplers and the counter-based randomness they share."""

from .sequential import sequential_sample

__all__ = ["sequential_sample"]
