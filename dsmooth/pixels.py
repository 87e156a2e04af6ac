"""Pixels: bytes 0 .. 255, their values in [-1, 1], and the heights and widths of images."""

from __future__ import annotations

from typing import TypeVar

from torch import Tensor

T = TypeVar("T", Tensor, float)

PER_UNIT = 127.5  # bytes per unit of values


def value_of(byte: T) -> T:
    """The value in [-1, 1] of a byte; any shape."""
    return byte / PER_UNIT - 1


def byte_of(value: T) -> T:
    """The byte of a value in [-1, 1], not rounded; any shape."""
    return (value + 1) * PER_UNIT


def are_sides(*sizes: int) -> bool:
    """Whether networks take images with such sides, which they halve twice: multiples of 4."""
    return all(size >= 4 and size % 4 == 0 for size in sizes)
