"""Pixels: their bytes, values and likelihoods, and the sides of images."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Literal, TypedDict, TypeVar, get_args

from .fields import SettingError, check_choices

if TYPE_CHECKING:
    from torch import Tensor

T = TypeVar("T", "Tensor", float)

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


Likelihood = Literal["continuous", "discretized", "gaussian"]
# Which bytes have a probability of their own: none, or each of the 256.
Atoms = tuple[()] | Literal["all"]
N_BYTES = 256


class MixtureOptions(TypedDict):
    """Arguments of the functional ops that say which distribution a pixel has."""

    likelihood: Likelihood
    atoms: Atoms
    smoothing_scale: float


def check_likelihood(
    likelihood: str, atoms: Atoms = (), smoothing_scale: float = 0.0, image_channels: int = 1
) -> int:
    """J, the number of atoms: 0 or 256.

    Raises ValueError for an unknown likelihood, other atoms or channels, or for atoms or a scale
    that do not go with it.
    """
    likelihoods = likelihood, get_args(Likelihood)
    kinds, channels = (atoms, ((), "all")), (image_channels, (1, 3))
    check_choices(likelihood=likelihoods, image_channels=channels, atoms=kinds)
    if likelihood == "gaussian" and not 0 < smoothing_scale < math.inf:
        raise SettingError(
            "smoothing_scale",
            f'must be positive for likelihood "gaussian", got {smoothing_scale}',
        )
    if atoms == ():
        return 0
    if likelihood != "discretized":
        raise SettingError("atoms", f'need likelihood "discretized", got {likelihood!r}')
    if image_channels != 1:
        raise SettingError("atoms", f"are for grey images only, got {image_channels} channels")
    return N_BYTES
