"""The likelihoods of a pixel and the atoms among the bytes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, get_args

from .fields import ArgumentError, check_one_of

Likelihood = Literal["continuous", "discretized", "gaussian"]
# Bytes with a probability of their own.
Atoms = tuple[int, ...] | Literal["all"]


def bytes_of(atoms: Sequence[int] | Literal["all"], image_channels: int = 1) -> tuple[int, ...]:
    """The bytes of atoms. Raises ValueError for "all" of images that are not grey."""
    if isinstance(atoms, str):
        check_one_of("atoms", atoms, ("all",))
        if image_channels != 1:
            raise ArgumentError(
                "atoms",
                'can be "all" for grey images alone, for an atom is one byte in all colours; list '
                f"the bytes: got {image_channels} image channels",
            )
        return tuple(range(256))
    return tuple(atoms)


def check_likelihood(
    likelihood: str, atoms: Sequence[int] = (), smoothing_scale: float = 0.0
) -> None:
    """Raise ValueError for an unknown likelihood, or atoms or a scale that do not go with it."""
    check_one_of("likelihood", likelihood, get_args(Likelihood))
    if likelihood == "gaussian" and not 0 < smoothing_scale < math.inf:
        raise ArgumentError(
            "smoothing_scale", f'must be positive for likelihood "gaussian", got {smoothing_scale}'
        )
    if not atoms:
        return
    if likelihood != "discretized":
        raise ArgumentError("atoms", f'need likelihood "discretized", got {likelihood!r}')
    whole = all(isinstance(byte, int) and 0 <= byte <= 255 for byte in atoms)
    if not whole or len(set(atoms)) != len(atoms):
        raise ArgumentError("atoms", f"must be distinct bytes 0 .. 255, got {tuple(atoms)}")
