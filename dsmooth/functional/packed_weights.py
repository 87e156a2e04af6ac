"""All weights of a network in the order of the Triton kernels, in one launch.

A gated resnet or convolution called alone packs its own: a launch each, and a network has dozens.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from ..kernels.geometry import BlockWeights, is_dense, packed_starts, starts_of
from .dispatch import compute_dtype, resolve_impl, triton_obstacle
from .registration import register_function
from .taps import check_kernel


def pack_weights(blocks: Iterable[BlockWeights], x: Tensor) -> list[Tensor] | None:
    """What each gated resnet and convolution takes as `packed`; None where Triton does not compute.

    blocks: of convolutions, and of gated resnets whose skip is one tensor, or parts of n_filters
    channels. x: an image of the network, for its device and dtype. Packed weights have no gradient:
    the ops give those of the weights. They serve until a weight changes, and a forward with
    gradients if gradients are enabled now.
    """
    dtype = compute_dtype(x)
    if not _is_wanted(x, dtype):
        return None
    blocks = list(blocks)
    weights = [weight for block in blocks for weight in block.weights]
    gains = [gain for block in blocks for gain in block.gains]
    exact = _exact(dtype)
    if not all(tensor.dtype == exact and is_dense(tensor) for tensor in (*weights, *gains)):
        return None
    adjoint = torch.is_grad_enabled()
    with torch.no_grad():
        packed = pack_op(weights, gains, [block.weight_count for block in blocks], dtype, adjoint)
    sizes = [block.packed_size(adjoint) for block in blocks]
    starts = starts_of(sizes)
    return [packed[start : start + size] for start, size in zip(starts, sizes, strict=False)]


def _is_wanted(x: Tensor, dtype: torch.dtype) -> bool:
    """Whether a network runs on Triton."""
    chosen = resolve_impl("auto")
    asked = chosen == "triton" or (chosen == "auto" and x.device.type == "cuda")
    return asked and triton_obstacle(x.device, dtype) is None


def _exact(dtype: torch.dtype) -> torch.dtype:
    """Of weights beside images of this dtype."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def _blocks_of(
    weights: list[Tensor],
    gains: list[Tensor],
    counts: list[int],
    dtype: torch.dtype,
) -> list[BlockWeights]:
    """Raises ValueError for what the kernels would read beyond."""
    if not counts or not sum(map(abs, counts)) == len(weights) == len(gains):
        raise ValueError(
            f"weights and gains must be as many as the counts {counts} say, "
            f"got {len(weights)} and {len(gains)}"
        )
    if not dtype.is_floating_point:
        raise ValueError(f"dtype must be one of floating-point numbers, got {dtype}")
    blocks: list[BlockWeights] = []
    first = 0
    for count in counts:
        part = slice(first, first := first + abs(count))
        blocks.append(BlockWeights(weights[part], gains[part], count == -1))
        _check(blocks[-1], weights[0].device, dtype)
    return blocks


def _check(block: BlockWeights, device: torch.device, dtype: torch.dtype) -> None:
    if len(block.weights) not in (1, 2, 3):
        raise ValueError(f"a block must have 1 to 3 weights, got {len(block.weights)}")
    check_kernel(block.weights[0], "down_right")
    f, _, kh, kw = block.weights[0].shape
    shapes: list[tuple[int, ...]] = [(f, 2 * f, kh, kw), (2 * f, 2 * f, kh, kw)]
    shapes += [(f, 2 * channels, 1, 1) for channels in block.skip_channels]
    if len(block.weights) == 1:
        shapes = [tuple(block.weights[0].shape)]
    for weight, gain, shape in zip(block.weights, block.gains, shapes, strict=True):
        filters = shape[1:2] if block.transposed else shape[:1]
        for name, tensor, expected in (("weight", weight, shape), ("gain", gain, filters)):
            fits = tuple(tensor.shape) == expected and tensor.dtype == _exact(dtype)
            if not fits or tensor.device != device or not is_dense(tensor):
                raise ValueError(
                    f"{name} must have shape {expected}, {_exact(dtype)}, dense, on {device}, got "
                    f"{tuple(tensor.shape)}, {tensor.dtype}, strides {tensor.stride()}, on "
                    f"{tensor.device}"
                )


def _pack(
    weights: list[Tensor],
    gains: list[Tensor],
    counts: list[int],
    dtype: torch.dtype,
    adjoint: bool,
) -> Tensor:
    """One tensor of `dtype`; `packed_starts` says where each block's part begins.

    counts: how many weights each block has, -1 for that of a transposed convolution.
    """
    from ..kernels.weights import pack_again, pack_blocks

    # What was packed before was checked before.
    packed = pack_again(weights, gains, counts, dtype, adjoint=adjoint)
    if packed is None:
        packed = pack_blocks(_blocks_of(weights, gains, counts, dtype), dtype, adjoint=adjoint)
    return packed


def _packed(weights: list[Tensor], *rest: Any) -> Tensor:
    gains, counts, dtype, adjoint = rest
    blocks = _blocks_of(weights, gains, counts, dtype)
    return weights[0].new_empty(packed_starts(blocks, adjoint)[-1], dtype=dtype)


pack_op = register_function(
    "pack_weights",
    "(Tensor[] weights, Tensor[] gains, int[] counts, ScalarType dtype, bool adjoint) -> Tensor",
    _pack,
    _packed,
)
