"""Sizes that all of the player shares, and what it raises."""

from __future__ import annotations

import numpy as np

WARP = 32
WORDS = {1: np.uint8, 2: np.uint16, 4: np.uint32, 8: np.uint64}
SHARED_BYTES = 232 * 1024
FIRST_SHARED = 1024  # what the driver keeps in front


class Trap(Exception):
    """A kernel did what it must not do."""


def place_name(index: int) -> str:
    """Name of a place of the player's memory for a reader."""
    if 0 <= index < SHARED_BYTES:
        return f"shared byte {index - FIRST_SHARED}"
    return f"byte {index} of the player's memory"
