"""A program for the cached sampler: caches, operations and folded weights as data.

Each operation computes one layer at one position (or one row of positions) from cached activations:
a sum of matrix products, one per tap of a convolution, then an activation or the gate. The
operations run in phases (see docs/sampler.md): the encoder of the context, once per image;
the vertical stream, row by row; the horizontal stream, whose terms are split into a row part (what
is known when a row begins: the row above and u) and a pixel part (the pixel to the left and the
pixel itself). Every activation of the network is computed once per image.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import IntEnum

import numpy as np

Array = np.ndarray
NONE = -1  # no cache


class Phase(IntEnum):
    """When an operation runs."""

    ENCODER = 0
    VERTICAL = 1
    HORIZONTAL = 2
    HEAD = 3


@dataclass(frozen=True)
class Cache:
    """A ring of `rows` rows at 1/2**level resolution; rows = 0 keeps the whole image.

    operand: activations in the matmul's dtype, else float32.
    """

    level: int
    channels: int
    rows: int
    operand: bool


@dataclass(frozen=True)
class Term:
    """A run of taps in one row of a cache: weight (n, taps, channels), float64.

    Tap t reads row + drow, column + dcol + t, in the coordinates of the cache's level. row_part:
    computed for the whole row when it begins, from what is known by then.
    """

    cache: int
    drow: int
    dcol: int
    weight: Array
    row_part: bool = False


@dataclass
class Op:
    """One layer: bias plus terms, then where the result goes (cache indices or NONE).

    With `gate` the 2n sums are (A, G) and the value is residual_in + A * sigmoid(G); else the value
    is the sum; `add` is added to it. It is stored as float32 (residual_out), as concat_elu of
    itself (act_out) and as operand (raw_out). split: act_out gets elu of the value alone, as
    SPLIT_PARTS operands that add up to it. projection: (n, D), which times the vector of an image
    is one more bias for it; or None. row_parity, column_parity: the positions where the operation
    runs, NONE for all.
    """

    phase: Phase
    level: int
    bias: Array
    terms: list[Term]
    gate: bool = False
    residual_in: int = NONE
    add: int = NONE
    residual_out: int = NONE
    act_out: int = NONE
    raw_out: int = NONE
    split: bool = False
    projection: Array | None = None
    row_parity: int = NONE
    column_parity: int = NONE


@dataclass
class Program:
    """The whole network; `image`, `context` and `params` name the caches of input and output.

    image_channels to smoothing_scale: the pixels and their mixture, as in a ModelConfig.
    conditioned: decides the stream of the noise. image_parts: 1, or 2 when a pixel enters as a
    bfloat16 and the remainder as another. condition_size: D, length of the vector that each image
    is conditioned on.
    """

    image_channels: int
    image_parts: int
    n_mix: int
    likelihood: str
    atoms: tuple[int, ...]
    smoothing_scale: float
    conditioned: bool
    caches: list[Cache] = field(default_factory=list)
    ops: list[Op] = field(default_factory=list)
    image: int = NONE
    context: int = NONE
    params: int = NONE
    condition_size: int = 0

    def cache(self, level: int, channels: int, rows: int, *, operand: bool = True) -> int:
        """Add a cache and return its index."""
        self.caches.append(Cache(level, channels, rows, operand))
        return len(self.caches) - 1
