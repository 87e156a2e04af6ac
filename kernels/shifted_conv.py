"""Convolutions with padding on some sides and a stride, their adjoints and weight gradients.

There are a handful of them in a network, beside dozens of gated resnets. So they are made of what
is there: patches of the image side by side, one matmul, and for the adjoint a sum of patches. Up to
three that do not depend on each other, such as those of the two streams, share each launch.
Images are (B, C, H, W) channels_last; others are copied. Sums are float32 (float64 for float64).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from .elementwise import widen
from .geometry import Rows, Taps, cdiv, channels_last, empty_channels_last
from .launch import arithmetic, arithmetic_of, firsts_of, launch, plan, uses_tf32, wide_dtype
from .matmul import accumulate, parts_of, weight_gradients, zeros
from .patches import Folded, Read, fold, patches
from .tilings import MatmulTiling, launched_together, matmul_tiling
from .weight_gradients import unpack_convolutions
from .weights import pack_convolutions, parts_of_one

POINT = Taps(1, 1, 0, 0)


@triton.jit
def store_linear(
    acc, bias_ptr, y_ptr, first_row, n_rows, first_n,
    D: tl.constexpr, BIAS: tl.constexpr,
):  # fmt: skip
    """Columns first_n .. of y (rows, D) = acc + bias."""
    offs_n = first_n + tl.arange(0, acc.shape[1])
    if BIAS:
        acc += widen(tl.load(bias_ptr + offs_n, mask=offs_n < D, other=0.0))[None, :]
    rows = first_row + tl.arange(0, acc.shape[0])
    tl.store(
        y_ptr + rows[:, None] * D + offs_n[None, :],
        acc.to(y_ptr.dtype.element_ty),
        mask=(rows < n_rows)[:, None] & (offs_n < D)[None, :],
    )


@triton.jit
def linear_tile(
    a_ptr, w_ptr, bias_ptr, y_ptr, pid, n_rows, steps,
    C: tl.constexpr, D: tl.constexpr, BIAS: tl.constexpr,
    ACC: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_P: tl.constexpr, N1: tl.constexpr, N2: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """y (rows, D) = a w^T + bias; a: rows of C, w: (D, C)."""
    blocks_n: tl.constexpr = (D + N1 + N2 - 1) // (N1 + N2)
    first_row = (pid // blocks_n).to(tl.int64) * BLOCK_P
    first_n = pid % blocks_n * (N1 + N2)
    rows = tl.minimum(tl.arange(0, BLOCK_P), n_rows - 1 - first_row).to(tl.int32)
    acc, acc2 = zeros(BLOCK_P, N1, N2, ACC)
    acc, acc2 = accumulate(
        acc, acc2, a_ptr + first_row * C, w_ptr, rows, first_n, 0, 0, steps,
        C=C, N=D, KH=1, KW=1, TOP=0, LEFT=0, PLANES=0, PRECISION=PRECISION,
        N1=N1, N2=N2, BLOCK_K=BLOCK_K,
    )  # fmt: skip
    parts = parts_of(acc, acc2, 64, N2=N2)
    for i in tl.static_range(len(parts)):
        store_linear(
            parts[i], bias_ptr, y_ptr, first_row, n_rows, first_n + i * parts[0].shape[1],
            D=D, BIAS=BIAS,
        )  # fmt: skip


@triton.jit
def linear_kernel(
    a, w, bias, y, firsts, n_rows, steps, SHAPES: tl.constexpr, BIAS: tl.constexpr,
    ACC: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """`linear_tile` for each of several, whose programs begin at firsts."""
    pid = tl.program_id(0)
    for i in tl.static_range(len(a)):
        if (pid >= firsts[i]) & (pid < firsts[i + 1]):
            linear_tile(
                a[i], w[i], bias[i], y[i], pid - firsts[i], n_rows[i], steps[i],
                C=SHAPES[i][0], D=SHAPES[i][1], BIAS=BIAS, ACC=ACC, PRECISION=PRECISION,
                BLOCK_P=SHAPES[i][2], N1=SHAPES[i][3], N2=SHAPES[i][4], BLOCK_K=SHAPES[i][5],
            )  # fmt: skip


class Linear(NamedTuple):
    """y (rows, D) = a w^T + bias, its first n_rows rows; a (1, total, C), w (D, C)."""

    a: Tensor
    w: Tensor
    bias: Tensor | None
    y: Tensor
    n_rows: int


def _linear(jobs: list[Linear]) -> None:
    """In one launch, where one can have their tiles; all have a bias or none has."""
    of = jobs[0].a.dtype, *arithmetic_of(jobs[0].a)
    tilings = [matmul_tiling(job.n_rows, job.w.shape[0], job.w.shape[1], *of) for job in jobs]
    for places in launched_together(tilings):
        _launch_linear([jobs[i] for i in places], [tilings[i] for i in places])


def _launch_linear(jobs: list[Linear], tilings: list[MatmulTiling]) -> None:
    firsts = firsts_of(
        cdiv(job.n_rows, tiling.block_p) * cdiv(job.w.shape[0], tiling.block_n)
        for job, tiling in zip(jobs, tilings, strict=True)
    )
    channels, filters = ([job.w.shape[dim] for job in jobs] for dim in (1, 0))
    steps = [cdiv(c, tiling.block_k) for c, tiling in zip(channels, tilings, strict=True)]
    shapes = zip(channels, filters, [tiling.of_tile() for tiling in tilings], strict=True)
    first = jobs[0]
    planned = plan(
        (firsts[-1],), firsts=firsts, n_rows=tuple([job.n_rows for job in jobs]),
        steps=tuple(steps), SHAPES=tuple([(c, d, *tile) for c, d, tile in shapes]),
        BIAS=first.bias is not None, **arithmetic(first.a.dtype, uses_tf32(first.a.dtype)),
        num_warps=tilings[0].num_warps, num_stages=tilings[0].num_stages,
    )  # fmt: skip
    launch(
        linear_kernel, planned, first.a.device,
        a=tuple([job.a for job in jobs]), w=tuple([job.w for job in jobs]),
        bias=tuple([job.y if job.bias is None else job.bias for job in jobs]),
        y=tuple([job.y for job in jobs]),
    )  # fmt: skip


class Conv(NamedTuple):
    """A convolution among several that share their launches, and its operands.

    x: (B, C, H, W); weight (D, C, kh, kw), of a transposed one (C, D, kh, kw), float32 or float64
    for float64 x. gain (D,): g of a weight norm w = g v / |v| per filter, whose v is `weight`.
    size: of the output. packed: the weight packed already, as by `weights.pack_blocks`. All of
    several have a gain, a bias and a packed weight, or none has.
    """

    x: Tensor
    weight: Tensor
    gain: Tensor | None
    bias: Tensor | None
    taps: Taps
    size: tuple[int, int]
    packed: Tensor | None = None

    @property
    def out_rows(self) -> Rows:
        return Rows(self.x.shape[0], *self.size, 0, 0)

    @property
    def in_rows(self) -> Rows:
        return Rows.of(self.x, POINT)


def _convolve(
    reads: list[Tensor], ws: list[Tensor], biases: Sequence[Tensor | None], rows: list[Rows]
) -> list[Tensor]:
    """Convolutions by w (D, kh kw C), at the pixels of `rows`, of images whose patches are read."""
    ys = [
        empty_channels_last(read.new_empty((row.batch, 0, 0, 0)), w.shape[0], row[1:3])
        for read, w, row in zip(reads, ws, rows, strict=True)
    ]
    counts = [row.batch * row.height * row.width for row in rows]
    _linear(list(map(Linear, reads, ws, biases, ys, counts)))
    return ys


def _adjoint(
    reads: list[Tensor],
    ws: list[Tensor],
    biases: Sequence[Tensor],
    taps: list[Taps],
    rows: list[Rows],
    sizes: list[tuple[int, int]],
) -> list[Tensor]:
    """The adjoints by w (kh kw C, D) to images of `sizes`, of those that are read as rows."""
    if all(one == POINT for one in taps):
        return _convolve(reads, ws, biases or [None] * len(ws), rows)
    wide = wide_dtype(reads[0].dtype)
    spread = [
        torch.empty((1, row.total, w.shape[0]), dtype=wide, device=w.device)
        for row, w in zip(rows, ws, strict=True)
    ]
    counts = [row.batch * row.height * row.width for row in rows]
    _linear(list(map(Linear, reads, ws, [None] * len(ws), spread, counts)))
    dtypes = [read.dtype for read in reads]
    return fold(list(map(Folded, spread, taps, rows, sizes, dtypes)), biases)


def forward(convs: list[Conv], *, transposed: bool) -> tuple[list[Tensor], Tensor | None]:
    """The results, channels_last, and the packed weights if they were not given."""
    xs = [channels_last(conv.x) for conv in convs]
    packed = None
    if convs[0].packed is None:
        weights = [conv.weight for conv in convs]
        gains = [conv.gain for conv in convs if conv.gain is not None]
        packed = pack_convolutions(weights, gains, xs[0].dtype, transposed=transposed)
    ws = [w for w, _ in _parts(convs, packed, transposed)]
    taps = [conv.taps for conv in convs]
    if transposed:
        rows = [conv.in_rows for conv in convs]
        biases = [conv.bias for conv in convs if conv.bias is not None]
        sizes = [conv.size for conv in convs]
        return _adjoint(list(map(_pixels, xs)), ws, biases, taps, rows, sizes), packed
    rows = [conv.out_rows for conv in convs]
    if all(one == POINT for one in taps):
        reads = list(map(_pixels, xs))
    else:
        reads, _ = patches(list(map(Read, xs, taps, rows)))
    return _convolve(reads, ws, [conv.bias for conv in convs], rows), packed


def _pixels(image: Tensor) -> Tensor:
    """(1, B H W, C): the rows that a channels_last image is."""
    return image.permute(0, 2, 3, 1).reshape(1, -1, image.shape[1])


def _parts(
    convs: list[Conv], packed: Tensor | None, transposed: bool
) -> list[tuple[Tensor, Tensor | None]]:
    """Of each weight what `parts_of_one` finds; packed: those that were not given."""
    if packed is None:
        given = [conv.packed for conv in convs if conv.packed is not None]
    else:
        given = list(packed.split([2 * conv.weight.numel() for conv in convs]))
    return [
        parts_of_one(part, conv.weight, transposed) for conv, part in zip(convs, given, strict=True)
    ]


class Gradients(NamedTuple):
    """Those of each convolution; empty lists for what is not needed."""

    xs: list[Tensor]
    weights: list[Tensor]
    gains: list[Tensor]
    biases: list[Tensor]


def backward(
    grad_ys: list[Tensor],
    convs: list[Conv],
    packed: Tensor | None,
    *,
    transposed: bool,
    need_x: bool = True,
    need_parameters: bool = True,
) -> Gradients:
    """The gradients of `forward`, whose packed weights these are, if they were not given."""
    xs, grad_ys = ([channels_last(t) for t in ts] for ts in ([c.x for c in convs], grad_ys))
    weights = [conv.weight for conv in convs]
    taps = [conv.taps for conv in convs]
    ws = [w for _, w in _parts(convs, packed, transposed) if w is not None]
    # The convolution runs from y to x where it is the transposed one.
    rows = [conv.in_rows if transposed else conv.out_rows for conv in convs]
    images, gs = (grad_ys, xs) if transposed else (xs, grad_ys)
    reads: list[Read] = []
    if need_parameters or transposed:
        reads += map(Read, images, taps, rows)
    if need_parameters:
        # A bias' gradient is a sum over pixels of y.
        summed = convs[0].bias is not None
        once = summed and not transposed
        reads += [Read(g, POINT, row, summed=once) for g, row in zip(gs, rows, strict=True)]
        if summed and transposed:
            outs = [conv.out_rows for conv in convs]
            reads += [Read(g, POINT, row, False, True) for g, row in zip(images, outs, strict=True)]
    stored, sums = patches(reads) if reads else ([], [])
    read_images, read_gs = stored[: len(convs)], stored[len(convs) :]
    grad_xs: list[Tensor] = []
    if need_x and transposed:
        none: list[Tensor | None] = [None] * len(convs)
        grad_xs = _convolve(read_images, ws, none, rows)
    elif need_x:
        sizes = [(x.shape[2], x.shape[3]) for x in xs]
        grad_xs = _adjoint(list(map(_pixels, gs)), ws, [], taps, rows, sizes)
    if not need_parameters:
        return Gradients(grad_xs, [], [], [])
    gains = [conv.gain for conv in convs if conv.gain is not None]
    parts = weight_gradients(read_images, read_gs)
    found = unpack_convolutions(parts, sums, weights, gains, transposed=transposed)
    return Gradients(grad_xs, *found)
