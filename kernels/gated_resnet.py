"""The gated resnet: matmuls of rows (`matmul.py`), and what is computed between them.

    h = conv_in(E(x)) + nin(E(a)) + biases           hidden_kernel
    y = x + A sigmoid(G), (A, G) = conv_out(D E(h))  gate_kernel

with E = concat_elu and dropout D, which `expand` writes. Backward, A and G are computed anew
(gate_kernel with GRAD), and each data gradient ends with the slopes of elu. Saved for it are h and
the packed weights; E is written again.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from .elementwise import deinterleave, drop, elu_slopes, widen
from .expand import expand
from .geometry import Rows, Taps, channels_last, empty_channels_last, planes_of
from .launch import arithmetic, launch, matmul_tiling, wide_dtype
from .matmul import accumulate, place_of, weight_gradient, zeros
from .tilings import MatmulTiling
from .weights import pack, parts_of, unpack


@triton.jit
def add_bias(acc, bias_ptr, offs, N: tl.constexpr):
    """acc (P, columns) + bias, of columns offs of N."""
    return acc + widen(tl.load(bias_ptr + offs, mask=offs < N, other=0.0))[None, :]


@triton.jit
def store_hidden(
    acc, bias_ptr, nin_bias_ptr, h_ptr, place, is_pixel, first_n,
    F: tl.constexpr, SKIP: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Columns first_n .. of h (P, F) = acc + biases."""
    offs_n = first_n + tl.arange(0, BLOCK)
    if SKIP:
        acc = add_bias(acc, nin_bias_ptr, offs_n, N=F)
    acc = add_bias(acc, bias_ptr, offs_n, N=F)
    tl.store(
        h_ptr + place[:, None] * F + offs_n[None, :],
        acc.to(h_ptr.dtype.element_ty),
        mask=is_pixel[:, None] & (offs_n < F)[None, :],
    )


@triton.jit
def hidden_kernel(
    e_ptr, w_ptr, bias_ptr, nin_bias_ptr, h_ptr, batch, height, width, plane_stride, steps,
    F: tl.constexpr, PLANES: tl.constexpr,
    KH: tl.constexpr, KW: tl.constexpr, TOP: tl.constexpr, LEFT: tl.constexpr,
    ACC: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_P: tl.constexpr, N1: tl.constexpr, N2: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """h (P, F) from e, planes of 2F channels: concat_elu of x, then of the skips.

    w: (F, (KH KW + PLANES) 2F).
    """
    blocks_n: tl.constexpr = (F + N1 + N2 - 1) // (N1 + N2)
    pid = tl.program_id(0)
    first_row = (pid // blocks_n).to(tl.int64) * BLOCK_P
    first_n = pid % blocks_n * (N1 + N2)
    acc, acc2 = zeros(BLOCK_P, N1, N2, ACC)
    acc, acc2 = accumulate(
        acc, acc2, e_ptr, w_ptr, first_row, first_n, width + KW - 1, plane_stride, steps,
        C=2 * F, N=F, KH=KH, KW=KW, TOP=TOP, LEFT=LEFT, PLANES=PLANES, PRECISION=PRECISION,
        BLOCK_P=BLOCK_P, N1=N1, N2=N2, BLOCK_K=BLOCK_K,
    )  # fmt: skip
    base, place, is_pixel = place_of(first_row, batch, height, width, KH=KH, KW=KW, BLOCK=BLOCK_P)
    h_ptr += base * F
    store_hidden(
        acc, bias_ptr, nin_bias_ptr, h_ptr, place, is_pixel, first_n,
        F=F, SKIP=PLANES > 0, BLOCK=N1,
    )  # fmt: skip
    if N2 > 0:
        store_hidden(
            acc2, bias_ptr, nin_bias_ptr, h_ptr, place, is_pixel, first_n + N1,
            F=F, SKIP=PLANES > 0, BLOCK=N2,
        )  # fmt: skip


@triton.jit
def store_gate(
    acc, bias_ptr, x_ptr, out_ptr, sums_ptr, place, is_pixel, first_f,
    F: tl.constexpr, GRAD: tl.constexpr, BLOCK: tl.constexpr, BLOCK_P: tl.constexpr,
):  # fmt: skip
    """What gate_kernel writes of channels first_f .., whose A and G are acc's columns in turn."""
    offs_f = first_f + tl.arange(0, BLOCK // 2)
    mask_f = offs_f < F
    a, g = deinterleave(acc)
    a = add_bias(a, bias_ptr, offs_f, N=F)
    g = add_bias(g, bias_ptr + F, offs_f, N=F)
    gate = 1 / (1 + tl.exp(-g))
    mask = is_pixel[:, None] & mask_f[None, :]
    offs = place[:, None] * F + offs_f[None, :]
    x = widen(tl.load(x_ptr + offs, mask=mask, other=0.0))
    if GRAD:
        da = tl.where(mask, x * gate, 0.0)
        dg = tl.where(mask, da * a * (1 - gate), 0.0)
        out = out_ptr + tl.arange(0, BLOCK_P)[:, None] * (2 * F) + offs_f[None, :]
        tl.store(out, da.to(out_ptr.dtype.element_ty), mask=mask_f[None, :])
        tl.store(out + F, dg.to(out_ptr.dtype.element_ty), mask=mask_f[None, :])
        sums = sums_ptr + offs_f
        tl.store(sums, tl.sum(da, axis=0), mask=mask_f)
        tl.store(sums + F, tl.sum(dg, axis=0), mask=mask_f)
    else:
        tl.store(out_ptr + offs, (x + a * gate).to(out_ptr.dtype.element_ty), mask=mask)


@triton.jit
def gate_kernel(
    e_ptr, w_ptr, bias_ptr, x_ptr, out_ptr, sums_ptr, batch, height, width, steps,
    F: tl.constexpr, GRAD: tl.constexpr,
    KH: tl.constexpr, KW: tl.constexpr, TOP: tl.constexpr, LEFT: tl.constexpr,
    ACC: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_P: tl.constexpr, N1: tl.constexpr, N2: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """y (P, F) = x + A sigmoid(G), with (A, G) = conv_out(e) + bias, e of 2F channels.

    With GRAD, x is dy, and out the gradients of A and of G, rows of 2F; sums (blocks, 2F) are
    theirs over each block of rows. w: (2F, KH KW 2F), filters A_0, G_0, A_1, ...
    """
    blocks_n: tl.constexpr = (2 * F + N1 + N2 - 1) // (N1 + N2)
    pid = tl.program_id(0)
    block = (pid // blocks_n).to(tl.int64)
    first_row = block * BLOCK_P
    first_n = pid % blocks_n * (N1 + N2)
    acc, acc2 = zeros(BLOCK_P, N1, N2, ACC)
    acc, acc2 = accumulate(
        acc, acc2, e_ptr, w_ptr, first_row, first_n, width + KW - 1, 0, steps,
        C=2 * F, N=2 * F, KH=KH, KW=KW, TOP=TOP, LEFT=LEFT, PLANES=0, PRECISION=PRECISION,
        BLOCK_P=BLOCK_P, N1=N1, N2=N2, BLOCK_K=BLOCK_K,
    )  # fmt: skip
    base, place, is_pixel = place_of(first_row, batch, height, width, KH=KH, KW=KW, BLOCK=BLOCK_P)
    x_ptr += base * F
    out_ptr += first_row * (2 * F) if GRAD else base * F
    sums_ptr += block * (2 * F)
    store_gate(
        acc, bias_ptr, x_ptr, out_ptr, sums_ptr, place, is_pixel, first_n // 2,
        F=F, GRAD=GRAD, BLOCK=N1, BLOCK_P=BLOCK_P,
    )  # fmt: skip
    if N2 > 0:
        store_gate(
            acc2, bias_ptr, x_ptr, out_ptr, sums_ptr, place, is_pixel, (first_n + N1) // 2,
            F=F, GRAD=GRAD, BLOCK=N2, BLOCK_P=BLOCK_P,
        )  # fmt: skip


@triton.jit
def store_data_gradient(
    acc, x_ptr, kept_ptr, add_ptr, dx_ptr, sums_ptr, place, is_pixel, first_f, first_c,
    F: tl.constexpr, C: tl.constexpr, DROPOUT: tl.constexpr, SCALE: tl.constexpr,
    ADD: tl.constexpr, HIDDEN: tl.constexpr, BLOCK: tl.constexpr, BLOCK_P: tl.constexpr,
):  # fmt: skip
    """What data_gradient_kernel writes of channels first_c + first_f .. of a plane."""
    offs_f = first_f + tl.arange(0, BLOCK // 2)
    mask_f = (offs_f < F) & (first_c + offs_f < C)
    mask = is_pixel[:, None] & mask_f[None, :]
    positive, negative = deinterleave(acc)
    offs_row = tl.arange(0, BLOCK_P)[:, None] * F + offs_f[None, :]
    if DROPOUT:
        kept = tl.load(kept_ptr + offs_row, mask=mask, other=0)
        positive, negative = drop(positive, negative, kept, SCALE)
    offs_x = place[:, None] * C + (first_c + offs_f)[None, :]
    x = tl.load(x_ptr + offs_x, mask=mask, other=0.0)
    slope, slope_negative = elu_slopes(x)
    dx = slope * positive - slope_negative * negative
    if ADD:
        dx += widen(tl.load(add_ptr + offs_x, mask=mask, other=0.0))
    if HIDDEN:
        dx = tl.where(mask, dx, 0.0)
        tl.store(dx_ptr + offs_row, dx.to(dx_ptr.dtype.element_ty), mask=mask_f[None, :])
        tl.store(sums_ptr + offs_f, tl.sum(dx, axis=0), mask=mask_f)
    else:
        tl.store(dx_ptr + offs_x, dx.to(dx_ptr.dtype.element_ty), mask=mask)


@triton.jit
def data_gradient_kernel(
    g_ptr, w_ptr, x_ptr, kept_ptr, add_ptr, dx_ptr, sums_ptr, batch, height, width, steps, first_c,
    F: tl.constexpr, C: tl.constexpr, D: tl.constexpr,
    KH: tl.constexpr, KW: tl.constexpr, TOP: tl.constexpr, LEFT: tl.constexpr,
    PADDED_H: tl.constexpr, PADDED_W: tl.constexpr,
    DROPOUT: tl.constexpr, SCALE: tl.constexpr, ADD: tl.constexpr, HIDDEN: tl.constexpr,
    ACC: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_P: tl.constexpr, N1: tl.constexpr, N2: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """dx of conv(D E(x)), given the gradient g of that convolution's output, rows of D.

    dx = elu'(x) dE+ - elu'(-x) dE-, plus an image (ADD), of F channels from first_c on of an image
    (P, C). HIDDEN: x is h, and dx goes to rows of F, with zeros where there is no pixel; its sums
    over each block of rows, (blocks, F), are written too. KH .. LEFT are the adjoint's taps; rows
    are padded for kernels of PADDED_H x PADDED_W. w: (2F, KH KW D), dE+_0, dE-_0, dE+_1, ...
    """
    blocks_n: tl.constexpr = (2 * F + N1 + N2 - 1) // (N1 + N2)
    pid = tl.program_id(0)
    block = (pid // blocks_n).to(tl.int64)
    first_row = block * BLOCK_P
    first_n = pid % blocks_n * (N1 + N2)
    acc, acc2 = zeros(BLOCK_P, N1, N2, ACC)
    acc, acc2 = accumulate(
        acc, acc2, g_ptr, w_ptr, first_row, first_n, width + PADDED_W - 1, 0, steps,
        C=D, N=2 * F, KH=KH, KW=KW, TOP=TOP, LEFT=LEFT, PLANES=0, PRECISION=PRECISION,
        BLOCK_P=BLOCK_P, N1=N1, N2=N2, BLOCK_K=BLOCK_K,
    )  # fmt: skip
    base, place, is_pixel = place_of(
        first_row, batch, height, width, KH=PADDED_H, KW=PADDED_W, BLOCK=BLOCK_P
    )
    x_ptr += base * C
    add_ptr += base * C
    kept_ptr += first_row * F
    dx_ptr += first_row * F if HIDDEN else base * C
    sums_ptr += block * F
    store_data_gradient(
        acc, x_ptr, kept_ptr, add_ptr, dx_ptr, sums_ptr, place, is_pixel, first_n // 2, first_c,
        F=F, C=C, DROPOUT=DROPOUT, SCALE=SCALE,
        ADD=ADD, HIDDEN=HIDDEN, BLOCK=N1, BLOCK_P=BLOCK_P,
    )  # fmt: skip
    if N2 > 0:
        store_data_gradient(
            acc2, x_ptr, kept_ptr, add_ptr, dx_ptr, sums_ptr, place, is_pixel,
            (first_n + N1) // 2, first_c, F=F, C=C, DROPOUT=DROPOUT, SCALE=SCALE,
            ADD=ADD, HIDDEN=HIDDEN, BLOCK=N2, BLOCK_P=BLOCK_P,
        )  # fmt: skip


class Settings(NamedTuple):
    """What a block is beside its tensors.

    dropout: the least word >> 9 that is kept, and what kept elements are multiplied by; none
    without a seed.
    """

    taps: Taps
    dropout: tuple[int, float]
    layer: int


class Needs(NamedTuple):
    """Which gradients are wanted: of x, of the skips, of all parameters."""

    x: bool = True
    skips: bool = True
    parameters: bool = True


EVERYTHING = Needs()


def _runs(taps: Taps, channels: int, planes: int = 0) -> tuple[tuple[int, int], ...]:
    """The contracted index of a convolution: how many runs, and how long, as in `accumulate`."""
    return ((taps.kh, taps.kw * channels), (planes, channels))


def _steps(runs: tuple[tuple[int, int], ...], block_k: int) -> int:
    return sum(count * triton.cdiv(length, block_k) for count, length in runs)


def _matmul(
    kernel: Any, rows: Rows, taps: Taps, channels: int, columns: int, like: Tensor, **named: Any
) -> None:
    """Launch a kernel that ends a matmul of `rows` by so many columns."""
    runs = _runs(taps, channels, named.get("PLANES", 0))
    tiling = _tiling(rows, taps, channels, columns, like, named.get("PLANES", 0))
    grid = (rows.total // tiling.block_p * triton.cdiv(columns, tiling.block_n),)
    launch(
        kernel, grid, like.device, **named, **rows.numbers(), steps=_steps(runs, tiling.block_k),
        **taps.constants(), **arithmetic(like.dtype), **tiling.kernel_options(),
    )  # fmt: skip


def _tiling(
    rows: Rows, taps: Taps, channels: int, columns: int, like: Tensor, planes: int = 0
) -> MatmulTiling:
    return matmul_tiling(rows.total, columns, _runs(taps, channels, planes), like)


def forward(
    x: Tensor,
    skips: list[Tensor],
    weights: list[Tensor],
    biases: list[Tensor],
    gains: list[Tensor],
    seed: Tensor | None,
    settings: Settings,
    save: bool = True,
) -> tuple[Tensor, Tensor, Tensor]:
    """(y, h, packed): y and h (B, F, H, W) channels_last, the packed weights for the backward.

    weights, biases, gains: of conv_in, conv_out and, with skips, nin_skip; gains may be none.
    Without `save`, packed lacks what the backward alone reads.
    """
    x, skips = channels_last(x), [channels_last(skip) for skip in skips]
    taps, f = settings.taps, x.shape[1]
    channels = [skip.shape[1] for skip in skips]
    rows, planes = Rows.of(x, taps), planes_of(channels, f)
    packed = pack(weights, gains, channels, planes, x.dtype, adjoint=save)
    h, y = (empty_channels_last(x, f) for _ in range(2))
    e, _ = expand(rows, x, skips, None)
    _matmul(
        hidden_kernel, rows, taps, 2 * f, f, x,
        e_ptr=e, w_ptr=packed, bias_ptr=biases[0], nin_bias_ptr=biases[-1], h_ptr=h,
        plane_stride=e.stride(0), F=f, PLANES=planes,
    )  # fmt: skip
    e, _ = expand(rows, None, [], h, seed, settings.layer, settings.dropout)
    w_out = packed[2 * f * f * (taps.kh * taps.kw + planes) :]
    _gate(rows, taps, e[0], w_out, biases[1], x, y, None)
    return y, h, packed


def _gate(
    rows: Rows,
    taps: Taps,
    e: Tensor,
    w: Tensor,
    bias: Tensor,
    x: Tensor,
    out: Tensor,
    sums: Tensor | None,
) -> None:
    """gate_kernel, with GRAD if there are `sums`."""
    f = x.shape[1]
    _matmul(
        gate_kernel, rows, taps, 2 * f, 2 * f, x,
        e_ptr=e, w_ptr=w, bias_ptr=bias, x_ptr=x, out_ptr=out,
        sums_ptr=out if sums is None else sums, F=f, GRAD=sums is not None,
    )  # fmt: skip


def _data_gradient(
    rows: Rows,
    taps: Taps,
    g: Tensor,
    w: Tensor,
    x: Tensor,
    filters: int,
    out: Tensor,
    *,
    first: int = 0,
    kept: Tensor | None = None,
    scale: float = 1.0,
    add: Tensor | None = None,
    sums: Tensor | None = None,
) -> None:
    """data_gradient_kernel for channels first .. first + filters - 1 of x; HIDDEN with `sums`."""
    d = g.shape[2]
    _matmul(
        data_gradient_kernel, rows, taps.adjoint(), d, 2 * filters, x,
        g_ptr=g, w_ptr=w, x_ptr=x, kept_ptr=x if kept is None else kept,
        add_ptr=x if add is None else add, dx_ptr=out, sums_ptr=out if sums is None else sums,
        first_c=first, F=filters, C=x.shape[1], D=d, PADDED_H=rows.kh, PADDED_W=rows.kw,
        DROPOUT=kept is not None, SCALE=scale, ADD=add is not None, HIDDEN=sums is not None,
    )  # fmt: skip


def _block_sums(rows: Rows, taps: Taps, channels: int, columns: int, n: int, x: Tensor) -> Tensor:
    """Room for sums over each block of rows of a matmul, (blocks, n)."""
    blocks = rows.total // _tiling(rows, taps, channels, columns, x).block_p
    return torch.empty((blocks, n), dtype=wide_dtype(x.dtype), device=x.device)


def backward(
    grad_y: Tensor,
    x: Tensor,
    h: Tensor,
    packed: Tensor,
    skips: list[Tensor],
    weights: list[Tensor],
    biases: list[Tensor],
    gains: list[Tensor],
    seed: Tensor | None,
    settings: Settings,
    needs: Needs = EVERYTHING,
) -> dict[str, list[Tensor]]:
    """Gradients: "x" (one), "skips", "weights", "biases" and "gains", those that are needed."""
    x, h, grad_y, *skips = map(channels_last, (x, h, grad_y, *skips))
    taps, f = settings.taps, x.shape[1]
    channels = [skip.shape[1] for skip in skips]
    rows, planes = Rows.of(x, taps), planes_of(channels, f)
    w = parts_of(packed, f, taps, planes)
    d_gates, dh = rows.empty(x, 2 * f), rows.empty(x, f)
    e, kept = expand(
        rows, x if needs.parameters else None, skips if needs.parameters else [], h,
        seed, settings.layer, settings.dropout, d_gates=d_gates, dh=dh,
    )  # fmt: skip
    d_gates, dh = rows.first(d_gates), rows.first(dh)
    out_sums = _block_sums(rows, taps, 2 * f, 2 * f, 2 * f, x)
    in_sums = _block_sums(rows, taps.adjoint(), 2 * f, 2 * f, f, x)
    _gate(rows, taps, e[-1], w.out, biases[1], grad_y, d_gates, out_sums)
    _data_gradient(
        rows, taps, d_gates, w.out_adjoint, h, f, dh,
        kept=kept, scale=settings.dropout[1], sums=in_sums,
    )  # fmt: skip
    grads: dict[str, list[Tensor]] = {}
    if needs.parameters:
        hidden = weight_gradient(e[:-1], dh, rows, taps, planes)
        out = weight_gradient(e[-1:], d_gates, rows, taps)
        grads["weights"], grads["biases"], grads["gains"] = unpack(
            hidden, out, in_sums, out_sums, weights, gains, channels, planes
        )
    if needs.x:
        grads["x"] = [empty_channels_last(x, f)]
        _data_gradient(rows, taps, dh, w.in_adjoint, x, f, grads["x"][0], add=grad_y)
    if needs.skips:
        grads["skips"] = _skip_gradients(rows, dh, w.nin_adjoint, skips)
    return grads


def _skip_gradients(rows: Rows, dh: Tensor, w: Tensor, skips: list[Tensor]) -> list[Tensor]:
    """Those of the 1x1 convolution of concat_elu of the skips, plane by plane."""
    f = dh.shape[2]
    weights = iter(w.split(2 * f * f))
    grads = [empty_channels_last(skip, skip.shape[1]) for skip in skips]
    for skip, grad in zip(skips, grads, strict=True):
        for first in range(0, skip.shape[1], f):
            _data_gradient(rows, Taps(1, 1, 0, 0), dh, next(weights), skip, f, grad, first=first)
    return grads
