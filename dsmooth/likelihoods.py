"""The distribution of a pixel: its likelihood, and bytes with a probability of their own."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, TypedDict, get_args

from .errors import SettingError
from .fields import check_one_of

Likelihood = Literal["continuous", "discretized", "gaussian"]
# Bytes with a probability of their own.
Atoms = tuple[int, ...] | Literal["all"]


class MixtureOptions(TypedDict):
    """Arguments of the functional ops that say which distribution a pixel has."""

    likelihood: Likelihood
    atoms: tuple[int, ...]
    smoothing_scale: float


def bytes_of(atoms: Sequence[int] | Literal["all"], image_channels: int = 1) -> tuple[int, ...]:
    """The bytes of atoms. Raises ValueError for "all" of images that are not grey."""
    if isinstance(atoms, str):
        check_one_of("atoms", atoms, ("all",))
        if image_channels != 1:
            raise SettingError(
                "atoms",
                'can be "all" for grey images only, for an atom is one byte in all colours; list '
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
        raise SettingError(
            "smoothing_scale",
            f'must be positive for likelihood "gaussian", got {smoothing_scale}',
        )
    if not atoms:
        return
    if likelihood != "discretized":
        raise SettingError("atoms", f'need likelihood "discretized", got {likelihood!r}')
    whole = all(isinstance(byte, int) and 0 <= byte <= 255 for byte in atoms)
    if not whole or len(set(atoms)) != len(atoms):
        raise SettingError("atoms", f"must be distinct bytes 0 .. 255, got {tuple(atoms)}")
