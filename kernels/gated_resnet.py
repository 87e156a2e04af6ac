"""The gated resnet: matmuls of rows (`matmul.py`), and what is computed between them.

    h = conv_in(E(x)) + nin(E(a)) + biases           hidden_kernel
    y = x + A sigmoid(G), (A, G) = conv_out(D E(h))  gate_kernel

with E = concat_elu and dropout D, which `expand` writes. Backward, A and G are computed anew
(gate_kernel with GRAD), and each data gradient ends with the slopes of elu. Saved for it are h and
the packed weights; E is written again.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import torch
from torch import Tensor

from . import tilings
from .expand import expand
from .gated_resnet_kernels import data_gradient_kernel, gate_kernel, hidden_kernel
from .geometry import Rows, Taps, cdiv, channels_last, empty_channels_last, planes_of
from .launch import arithmetic, launch, uses_tf32, wide_dtype
from .matmul import weight_gradient
from .weight_gradients import unpack
from .weights import pack, parts_of


class Settings(NamedTuple):
    """What a block is beside its tensors.

    dropout: the least word >> 9 that is kept, and what kept elements are multiplied by; none
    without a seed.
    """

    taps: Taps
    dropout: tuple[int, float]
    layer: int
    first_image: int = 0  # where the images begin in a larger batch whose dropout they share

    def of_dropout(self) -> tuple[int, tuple[int, float], int]:
        """As `expand` takes them."""
        return self.layer, self.dropout, self.first_image


class Needs(NamedTuple):
    """Which gradients are wanted: of x, of the skips, of all parameters."""

    x: bool = True
    skips: bool = True
    parameters: bool = True


EVERYTHING = Needs()


# What one kind of launch is for one shape is worked out once: a step has hundreds of launches.
@functools.lru_cache(maxsize=4096)
def plan_of(
    rows: Rows,
    taps: Taps,
    channels: int,
    columns: int,
    planes: int,
    dtype: torch.dtype,
    tf32: bool,
) -> tuple[tuple[int], int, dict[str, Any]]:
    """Grid, blocks of rows, and the arguments that follow from the shape, of a matmul of `rows`."""
    # The contracted index as in `accumulate`: how many runs, and how long.
    runs = ((taps.kh, taps.kw * channels), (planes, channels))
    tiling = tilings.matmul_tiling(rows.total, columns, runs, dtype, tf32)
    blocks = rows.total // tiling.block_p
    arguments = {
        **rows.numbers(),
        "steps": sum(count * cdiv(length, tiling.block_k) for count, length in runs),
        **taps.constants(),
        **arithmetic(dtype, tf32),
        **tiling.kernel_options(),
    }
    return (blocks * cdiv(columns, tiling.block_n),), blocks, arguments


def _matmul(
    kernel: Any, rows: Rows, taps: Taps, channels: int, columns: int, like: Tensor, **named: Any
) -> None:
    """Launch a kernel that ends a matmul of `rows` by so many columns."""
    planes = named.get("PLANES", 0)
    grid, _, arguments = plan_of(
        rows, taps, channels, columns, planes, like.dtype, uses_tf32(like.dtype)
    )
    launch(kernel, grid, like.device, **named, **arguments)


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
    e, _ = expand(rows, None, [], h, seed, *settings.of_dropout())
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
    _, blocks, _ = plan_of(rows, taps, channels, columns, 0, x.dtype, uses_tf32(x.dtype))
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
        seed, *settings.of_dropout(), d_gates=d_gates, dh=dh,
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
