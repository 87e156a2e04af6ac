"""Weights into the order that the matmuls read; `weight_gradients.py` is the way back.

A packed weight has a row per column of the matmul, its K numbers adjacent: (D, T C) for a
convolution, by tap and then channel, and for the adjoint (C, T D) with the taps turned around.
Columns that an epilogue takes in pairs lie side by side: A_i and G_i of a gate, the gradients of
elu(x_i) and elu(-x_i). Weight norm, w = g v / |v| per filter, is folded on the way.

One launch packs what a gated resnet needs, or what all those of a network need: then a table in the
device's memory says where each weight is and where it goes.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef

from .geometry import (
    BlockWeights,
    Taps,
    cdiv,
    is_dense,
    packed_size,
    packed_sizes,
    packed_starts,
    planes_of,
)
from .launch import accumulator_of, firsts_of, launch, plan
from .weight_kernels import pack_kernel, pack_table_kernel

BLOCK_D = 8
BLOCK_K = 256
FIELDS = 21  # of a row of a table, see `pack_table_kernel`


class Packed(NamedTuple):
    """Where the parts of the packed weights of a gated resnet begin, in one tensor.

    hidden: (F, (T + planes) 2F), conv_in and then the skips' weight. out: (2F, T 2F). For the
    adjoints out_adjoint (2F, T 2F), in_adjoint (2F, T F) and, for each plane, nin_adjoint (2F, F).
    """

    hidden: int
    out: int
    out_adjoint: int
    in_adjoint: int
    nin_adjoint: int

    @classmethod
    def of(cls, filters: int, taps: Taps, planes: int) -> Packed:
        sizes = packed_sizes(filters, taps, planes, True)
        return cls(*itertools.accumulate(sizes[:-1], initial=0))


class Place(NamedTuple):
    """Where number (d, c, t) of a weight goes: offset + d' of_d + c' of_c + t of_t.

    d and c count filters and channels. Of one of them the parts of `half` lie in turn: of the
    filters for a convolution, of the channels for its adjoint.
    """

    offset: int
    of_d: int
    of_c: int
    of_t: int
    half: int


class Order(NamedTuple):
    """How a weight is read, and where it goes, for the convolution and for its adjoint.

    source: taps, channels, filters, channels of two skips (see `source_of`), and strides of filter,
    channel and tap.
    """

    source: tuple[int, ...]
    forward: Place
    adjoint: Place


def dense(v: Tensor) -> Tensor:
    """v with one stride for all taps: contiguous or channels_last as it is, else a copy."""
    return v if is_dense(v) else v.contiguous()


def strides_of(v: Tensor) -> tuple[int, int, int]:
    """Strides of filter, channel and tap of a dense weight."""
    _, channels, rows, cols = v.shape
    stride_c, stride_t = (rows * cols, 1) if v.is_contiguous() else (1, channels)
    return channels * rows * cols, stride_c, stride_t


def three(tensors: list[Tensor]) -> tuple[Tensor, ...]:
    """Three tensors; those that are not there, of which no program reads, are the first."""
    return (*tensors, tensors[0], tensors[0])[:3]


def orders_of(weights: Sequence[Tensor], skip_channels: Sequence[int], first: int) -> list[Order]:
    """Of a gated resnet's dense weights (see `pack`), which go to places from `first` on."""
    f, _, kh, kw = weights[0].shape
    taps, planes = kh * kw, planes_of(skip_channels, f)
    starts = Packed.of(f, Taps(kh, kw, 0, 0), planes)
    hidden, out, out_adjoint, in_adjoint, nin_adjoint = (first + start for start in starts)
    row, turned = (taps + planes) * 2 * f, taps - 1
    s0, s1 = (*skip_channels, 0, 0)[:2]
    of_in, of_out, *of_nin = (strides_of(weight) for weight in weights)
    orders = [
        Order(
            (taps, 2 * f, f, 0, 0, *of_in),
            Place(hidden, row, 1, 2 * f, f),
            Place(in_adjoint + turned * f, 1, taps * f, -f, f),
        ),
        Order(
            (taps, 2 * f, 2 * f, 0, 0, *of_out),
            Place(out, taps * 2 * f, 1, 2 * f, f),
            Place(out_adjoint + turned * 2 * f, 1, taps * 2 * f, -2 * f, f),
        ),
    ]
    return orders + [
        Order(
            (planes, 2 * f, f, s0, s1, *strides),
            Place(hidden + taps * 2 * f, row, 1, 2 * f, f),
            Place(nin_adjoint, 1, f, 2 * f * f, f),
        )
        for strides in of_nin
    ]


def programs_of(orders: Sequence[Order]) -> list[int]:
    """How many programs each weight takes."""
    return [cdiv(order.source[2], BLOCK_D) for order in orders]


def pack(
    weights: list[Tensor],
    gains: list[Tensor],
    skip_channels: list[int],
    dtype: torch.dtype,
    *,
    adjoint: bool,
) -> Tensor:
    """The weights of a gated resnet, as `Packed` orders them, in one tensor of `dtype`.

    weights: conv_in, conv_out and, with skips, nin_skip, (D, C, kh, kw) each; gains: one (D,) for
    each of them, or none. They are float32, or float64 for a float64 result.
    """
    weights = [dense(weight) for weight in weights]
    size = (packed_size(weights, skip_channels, adjoint),)
    packed = torch.empty(size, dtype=dtype, device=weights[0].device)
    _pack(weights, gains, orders_of(weights, skip_channels, 0), packed, adjoint)
    return packed


def order_of(weight: Tensor, transposed: bool, first: int) -> Order:
    """Of a dense weight alone (see `parts_of_one`), which goes to places from `first` on."""
    stride_d, stride_c, stride_t = strides_of(weight)
    d, c, kh, kw = weight.shape
    t, second = kh * kw, first + weight.numel()
    if transposed:
        d, c, stride_d, stride_c = c, d, stride_c, stride_d
        forward, adjoint = Place(first, c, 1, d * c, d), Place(second, 1, t * d, d, c)
    else:
        forward, adjoint = Place(first, t * c, 1, c, d), Place(second, 1, d, c * d, c)
    return Order((t, c, d, 0, 0, stride_d, stride_c, stride_t), forward, adjoint)


def pack_convolutions(
    weights: list[Tensor], gains: list[Tensor], dtype: torch.dtype, *, transposed: bool
) -> Tensor:
    """Up to three weights of convolutions, one after the other, each as `parts_of_one` has it.

    gains: of a weight norm, one (D,) for each, or none.
    """
    weights = [dense(weight) for weight in weights]
    starts = firsts_of(2 * weight.numel() for weight in weights)
    packed = torch.empty((starts[-1],), dtype=dtype, device=weights[0].device)
    orders = [order_of(w, transposed, first) for w, first in zip(weights, starts, strict=False)]
    _pack(weights, gains, orders, packed, True)
    return packed


def parts_of_one(packed: Tensor, weight: Tensor, transposed: bool) -> tuple[Tensor, Tensor | None]:
    """What the forward and (if it is there) the backward multiply by, of a weight of a convolution
    that is packed in `packed`: (D, kh kw C) and (kh kw C, D).

    Of a transposed one, whose weight is (C, D, kh, kw): (kh kw D, C) and (C, kh kw D).
    """
    n, size = weight.numel(), weight.shape[0]
    shapes = (-1, size), (size, -1)
    if not transposed:
        shapes = shapes[::-1]
    both = len(packed) > n
    return packed[:n].view(shapes[0]), packed[n:].view(shapes[1]) if both else None


def _pack(
    weights: list[Tensor], gains: list[Tensor], orders: list[Order], packed: Tensor, adjoint: bool
) -> None:
    """pack_kernel for up to three dense weights."""
    sources, forwards, adjoints = zip(*(*orders, *orders[:1] * (3 - len(orders))), strict=True)
    planned = plan(
        (sum(programs_of(orders)),), sources=sources, forwards=tuple(map(tuple, forwards)),
        adjoints=tuple(map(tuple, adjoints)), NORMED=bool(gains), ADJOINT=adjoint,
        BLOCK_K=BLOCK_K, BLOCK_D=BLOCK_D, num_warps=4,
    )  # fmt: skip
    tensors = {"v": three(weights), "gain": three(gains or weights)}
    launch(pack_kernel, planned, packed.device, **tensors, packed_ptr=packed)


class Table(NamedTuple):
    """A table of pack_table_kernel.

    tensor: on the device. key: what it was made of, and storage: the first weight's memory. It
    stays while that memory does: a CUDA graph may read it. weights: how many; size: how many
    numbers they are when packed. wide: the dtype of sums.
    """

    tensor: Tensor
    key: tuple[Any, ...]
    storage: StorageWeakRef
    weights: int
    size: int
    wide: Any
    adjoint: bool


# By device and address of the first weight, dtype of the packed ones, and whether for the adjoint.
_tables: dict[tuple[torch.device, int, torch.dtype, bool], Table] = {}


def _key_of(
    weights: Sequence[Tensor], gains: Sequence[Tensor], counts: Sequence[int]
) -> tuple[Any, ...]:
    """All that a table follows from; counts: of the weights of each block (see `pack_again`)."""
    tensors = *weights, *gains
    return (*counts, *[(t.data_ptr(), t.dtype, t.shape, t.stride()) for t in tensors])


def pack_again(
    weights: Sequence[Tensor],
    gains: Sequence[Tensor],
    counts: Sequence[int],
    dtype: torch.dtype,
    *,
    adjoint: bool,
) -> Tensor | None:
    """What `pack_blocks` gives, if it packed these tensors before and none has moved; else None.

    counts: how many weights each block has, -1 for that of a transposed convolution.
    """
    if not weights:
        return None
    known = _tables.get((weights[0].device, weights[0].data_ptr(), dtype, adjoint))
    if known is None or known.storage.expired() or known.key != _key_of(weights, gains, counts):
        return None
    return _pack_by(known, dtype)


def pack_blocks(blocks: Sequence[BlockWeights], dtype: torch.dtype, *, adjoint: bool) -> Tensor:
    """The packed weights of all blocks in one tensor, in one launch; `packed_starts` finds them.

    Weights are dense, gains contiguous. Where they are is sent to the device, for `pack_again` too.
    """
    weights = [weight for block in blocks for weight in block.weights]
    gains = [gain for block in blocks for gain in block.gains]
    orders: list[Order] = []
    starts = packed_starts(blocks, adjoint)
    for block, start in zip(blocks, starts, strict=False):
        if len(block.weights) == 1:
            orders.append(order_of(block.weights[0], block.transposed, start))
        else:
            orders += orders_of(block.weights, block.skip_channels, start)
    for other in [other for other, table in _tables.items() if table.storage.expired()]:
        del _tables[other]
    first = weights[0]
    key = _key_of(weights, gains, [block.weight_count for block in blocks])
    made = _make_table(orders, weights, gains).to(first.device)
    memory, wide = StorageWeakRef(first.untyped_storage()), accumulator_of(first.dtype)
    table = Table(made, key, memory, len(weights), starts[-1], wide, adjoint)
    _tables[first.device, first.data_ptr(), dtype, adjoint] = table
    return _pack_by(table, dtype)


def _pack_by(table: Table, dtype: torch.dtype) -> Tensor:
    packed = torch.empty((table.size,), dtype=dtype, device=table.tensor.device)
    planned = plan(
        (len(table.tensor) - table.weights * FIELDS,), weights=table.weights, FIELDS=FIELDS,
        WIDE=table.wide, ADJOINT=table.adjoint, BLOCK_K=BLOCK_K, BLOCK_D=BLOCK_D, num_warps=4,
    )  # fmt: skip
    launch(pack_table_kernel, planned, packed.device, table_ptr=table.tensor, packed_ptr=packed)
    return packed


def _make_table(
    orders: Sequence[Order], weights: Sequence[Tensor], gains: Sequence[Tensor]
) -> Tensor:
    rows: list[int] = []
    owners: list[int] = []
    counts = programs_of(orders)
    for i, (order, weight, gain) in enumerate(zip(orders, weights, gains, strict=True)):
        addresses = weight.data_ptr(), gain.data_ptr()
        rows += [*order.source, *order.forward, *order.adjoint, *addresses, len(owners)]
        owners += [i] * counts[i]
    return torch.tensor(rows + owners)
