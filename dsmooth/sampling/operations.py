"""Operations of the cached sampler on caches, and their weights.

An operation computes one layer at one position (or one row of positions) from cached activations:
a sum of matrix products, one per tap of a convolution, then an activation or the gate.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

import numpy as np
import torch
from torch import Tensor

from ..nn.images import fourier_features
from ..nn.layers import WeightNormConv
from ..pixels import value_of

Array = np.ndarray
NONE = -1  # no cache
ADDENDS = 3  # bfloat16 values that sum to a float32


class Phase(IntEnum):
    """When an operation runs."""

    ENCODER = 0
    VERTICAL = 1
    HORIZONTAL = 2
    HEAD = 3


@dataclass(frozen=True)
class Cache:
    """A ring of `rows` rows at 1/2**resolution of the image's size; rows = 0 keeps the whole image.

    operand: whether it holds activations in the matmul's dtype; otherwise float32.
    """

    resolution: int
    channels: int
    rows: int
    operand: bool


@dataclass(frozen=True)
class Term:
    """A run of taps in one row of a cache: weight (n, taps, channels), float64.

    It reads the first channels of the cache, an even number. Tap t reads row + drow, column + dcol
    + t, in the coordinates of the cache's resolution. row_part: whether it is computed for the
    whole row when the row begins, from rows and streams that are complete by then.
    """

    cache: int
    drow: int
    dcol: int
    weight: Array
    row_part: bool = False


@dataclass
class Op:
    """One layer: bias plus terms, and the destinations of the result (cache indices or NONE).

    With `gate` the 2n sums are (A, G) and the value is residual_in + A * sigmoid(G); else the value
    is the sum. The cache `add` is added to the value. The value is stored as float32 (residual_out)
    and as an operand (raw_out), its concat_elu in act_out. split: act_out gets only elu of the
    value, as ADDENDS operands that sum to it. projection: (n, D) or None; its product with the
    vector of an image is added to the bias. row_parity, column_parity: the positions where the
    operation runs, NONE for all.
    """

    phase: Phase
    resolution: int
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


def widened(weight: Array, channels: int) -> Array:
    """Pad weights (n, c, kh, kw) with zeros to `channels` channels."""
    return np.pad(weight, ((0, 0), (0, channels - weight.shape[1]), (0, 0), (0, 0)))


def feature_table(octaves: int) -> Array:
    """The Fourier features of each byte, (256, 2 octaves) float32."""
    if octaves == 0:
        return np.zeros((256, 0), np.float32)
    bytes = value_of(torch.arange(256, dtype=torch.float32))
    return as_numpy(fourier_features(bytes.view(256, 1, 1, 1), octaves)[:, :, 0, 0])


def as_numpy(parameter: Tensor) -> Array:
    """A parameter as a numpy array: on a busy machine torch's threads would wait for each other."""
    values = parameter.detach()
    if values.dtype not in (torch.float32, torch.float64):
        values = values.float()
    return values.numpy(force=True)


def folded(layer: WeightNormConv) -> tuple[Array, Array]:
    """(weight, bias) with weight norm folded in float64.

    Raises ValueError if the network's dtype cannot represent a filter's norm, or float32 a weight.
    """
    parameters = [as_numpy(p) for p in (layer.weight_v, layer.weight_g, layer.bias)]
    v, g, bias = (values.astype(np.float64) for values in parameters)
    norm = np.sqrt(np.square(v).sum(layer.filter_dims, keepdims=True))
    limits = np.finfo(parameters[0].dtype)
    if (norm >= limits.tiny).all() and (norm <= limits.max).all():
        weight = v * (g.reshape(norm.shape) / norm)
        if np.abs(weight).max() <= np.finfo(np.float32).max:
            return weight, bias
    raise ValueError("a filter has a norm or a weight that its dtype cannot represent")


def addends_of(values: Array) -> list[Array]:
    """ADDENDS arrays of bfloat16 values whose sum is `values` to the rounding of float32."""
    addends = []
    for _ in range(ADDENDS):
        addends.append(torch.from_numpy(values).bfloat16().double().numpy())
        values = values - addends[-1]
    return addends
