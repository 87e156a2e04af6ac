"""The gated resnet: matmuls of rows (`matmul.py`), and what is computed between them.

    h = conv_in(E(x)) + nin(E(a)) + biases           hidden_kernel
    y = x + A sigmoid(G), (A, G) = conv_out(D E(h))  gate_kernel

the latter plus a bias of each image, if there is one;
with E = concat_elu and dropout D. `expand` writes E(x), hidden_kernel ends in D E(h) too. Backward,
E is written again, and each data gradient ends with the slopes of elu. Saved for it are h, the
packed weights and, if they are to be kept, A and G; else gate_kernel with GRAD computes them anew.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import torch
from torch import Tensor

from . import tilings
from .expand import Dropout, expand_backward, expand_forward
from .gated_resnet_kernels import (
    gate_kernel,
    hidden_gradient_kernel,
    hidden_kernel,
    input_gradient_kernel,
    parameter_gradient_kernel,
)
from .geometry import Rows, Taps, cdiv, channels_last, empty_channels_last, planes_of
from .launch import arithmetic, block_gradient_plans, launch, uses_tf32, wide_dtype
from .weight_gradients import unpack
from .weights import Packed, pack, parts_of


class Needs(NamedTuple):
    """Which gradients are wanted: of x, of the skips, of all parameters."""

    x: bool = True
    skips: bool = True
    parameters: bool = True


class Saved(NamedTuple):
    """What the forward leaves for the backward: h (B, F, H, W), the packed weights, and A and G as
    (B, 2F, H, W) if they are kept; images are channels_last."""

    h: Tensor
    packed: Tensor
    gates: Tensor | None


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
        **rows.arguments(),
        "steps": sum(count * cdiv(length, tiling.block_k) for count, length in runs),
        **taps.constants(),
        **arithmetic(dtype, tf32),
        **tiling.kernel_options(),
    }
    return (blocks * cdiv(columns, tiling.block_n),), blocks, arguments


@functools.lru_cache(maxsize=4096)
def input_plan_of(
    rows: Rows, taps: Taps, filters: int, skips: bool, dtype: torch.dtype, tf32: bool
) -> tuple[tuple[int], int, dict[str, Any]]:
    """`plan_of` for input_gradient_kernel, whose planes of skips have steps of their own."""
    grid, blocks, arguments = plan_of(rows, taps, filters, 2 * filters, int(skips), dtype, tf32)
    point_steps = cdiv(filters, arguments["BLOCK_K"])
    steps = arguments["steps"] - skips * point_steps
    return grid, blocks, {**arguments, "steps": steps, "point_steps": point_steps}


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
    taps: Taps,
    dropout: Dropout,
    save: bool = True,
    keep: bool = False,
    image_bias: Tensor | None = None,
) -> tuple[Tensor, Saved]:
    """y (B, F, H, W) channels_last, and what the backward needs.

    weights, biases, gains: of conv_in, conv_out and, with skips, nin_skip; gains may be none.
    image_bias: (B, 2F), contiguous, or none.
    Without `save`, the packed weights lack what the backward alone reads; keep: A and G are saved.
    """
    x, skips = channels_last(x), [channels_last(skip) for skip in skips]
    f = x.shape[1]
    channels = [skip.shape[1] for skip in skips]
    rows, planes = Rows.of(x, taps), planes_of(channels, f)
    packed = pack(weights, gains, channels, planes, x.dtype, adjoint=save)
    h, y = (empty_channels_last(x, f) for _ in range(2))
    gates = empty_channels_last(x, 2 * f) if keep else None
    e, kept = expand_forward(rows, x, skips, dropout)
    _matmul(
        hidden_kernel, rows, taps, 2 * f, f, x,
        e_ptr=e, w_ptr=packed, bias_ptr=biases[0], nin_bias_ptr=biases[-1], h_ptr=h,
        kept_ptr=x if kept is None else kept, eh_ptr=e[-1], plane_stride=e.stride(0),
        F=f, PLANES=planes, DROPOUT=kept is not None, SCALE=dropout.scale,
    )  # fmt: skip
    w_out = packed[2 * f * f * (taps.kh * taps.kw + planes) :]
    _gate(rows, taps, e[-1], w_out, biases[1], image_bias, x, y, gates=gates)
    return y, Saved(h, packed, gates)


def _gate(
    rows: Rows,
    taps: Taps,
    e: Tensor,
    w: Tensor,
    bias: Tensor,
    image_bias: Tensor | None,
    x: Tensor,
    out: Tensor,
    *,
    gates: Tensor | None = None,
    sums: Tensor | None = None,
) -> None:
    """gate_kernel, with GRAD if there are `sums`, with KEEP if there are `gates`."""
    f = x.shape[1]
    _matmul(
        gate_kernel, rows, taps, 2 * f, 2 * f, x,
        e_ptr=e, w_ptr=w, bias_ptr=bias, image_bias_ptr=bias if image_bias is None else image_bias,
        x_ptr=x, out_ptr=out,
        gates_ptr=out if gates is None else gates, sums_ptr=out if sums is None else sums,
        F=f, GRAD=sums is not None, KEEP=gates is not None, IMAGE_BIAS=image_bias is not None,
    )  # fmt: skip


def backward(
    grad_y: Tensor,
    x: Tensor,
    saved: Saved,
    skips: list[Tensor],
    weights: list[Tensor],
    biases: list[Tensor],
    gains: list[Tensor],
    taps: Taps,
    dropout: Dropout,
    needs: Needs = EVERYTHING,
    image_bias: Tensor | None = None,
) -> dict[str, list[Tensor]]:
    """Gradients: "x" (one), "skips", "weights", "biases", "gains" and "image_bias" (one), those
    that are needed."""
    x, h, grad_y, *skips = map(channels_last, (x, saved.h, grad_y, *skips))
    gates = None if saved.gates is None else channels_last(saved.gates)
    f = x.shape[1]
    channels = [skip.shape[1] for skip in skips]
    rows, planes = Rows.of(x, taps), planes_of(channels, f)
    w = parts_of(saved.packed, f, taps, planes)
    d_gates, dh = rows.empty(x, 2 * f), rows.empty(x, f)
    e, kept, out_sums = expand_backward(
        rows, x, skips, h, dropout, d_gates, dh, gates, grad_y, inputs=needs.parameters
    )
    d_gates, dh = rows.first(d_gates), rows.first(dh)
    if out_sums is None:
        out_sums = _block_sums(rows, taps, 2 * f, 2 * f, 2 * f, x)
        _gate(rows, taps, e[-1], w.out, biases[1], image_bias, grad_y, d_gates, sums=out_sums)
    in_sums = _block_sums(rows, taps.adjoint(), 2 * f, 2 * f, f, x)
    _matmul(
        hidden_gradient_kernel, rows, taps.adjoint(), 2 * f, 2 * f, x,
        g_ptr=d_gates, w_ptr=w.out_adjoint, h_ptr=h, kept_ptr=x if kept is None else kept,
        dh_ptr=dh, sums_ptr=in_sums, F=f, DROPOUT=kept is not None, SCALE=dropout.scale,
    )  # fmt: skip
    grads: dict[str, list[Tensor]] = {}
    if needs.parameters:
        hidden, out = _parameter_gradients(rows, taps, e, dh, d_gates, planes)
        grads["weights"], grads["biases"], grads["gains"] = unpack(
            hidden, out, in_sums, out_sums, weights, gains, channels, planes
        )
    if needs.parameters and image_bias is not None:
        # The rows of an image follow one another, with zeros where there is no pixel.
        lines = rows.batch * (rows.height + rows.above)
        of_images = d_gates[0, : lines * rows.pitch].view(rows.batch, -1, 2 * f)
        grads["image_bias"] = [of_images.sum(1, dtype=image_bias.dtype)]
    return grads | _input_gradients(rows, taps, dh, w, x, skips, grad_y, needs)


def _block_sums(rows: Rows, taps: Taps, channels: int, columns: int, n: int, x: Tensor) -> Tensor:
    """Room for sums over each block of rows of a matmul, (blocks, n)."""
    _, blocks, _ = plan_of(rows, taps, channels, columns, 0, x.dtype, uses_tf32(x.dtype))
    return torch.empty((blocks, n), dtype=wide_dtype(x.dtype), device=x.device)


def _parameter_gradients(
    rows: Rows, taps: Taps, e: Tensor, dh: Tensor, d_gates: Tensor, planes: int
) -> tuple[Tensor, Tensor]:
    """Parts (splits, K, D) of the gradients of packed weights: of h's convolutions, of the gates'.

    Sums are float32 (float64 for float64), in an order that only the shape decides.
    """
    f, t = dh.shape[2], taps.kh * taps.kw
    ks = (2 * f * (t + planes), 2 * f * t)
    plans = block_gradient_plans(rows.total, ks, f, e)
    parts = [
        torch.empty((plan.splits, k, d), dtype=wide_dtype(e.dtype), device=e.device)
        for plan, k, d in zip(plans, ks, (f, 2 * f), strict=True)
    ]
    hidden, out = plans
    programs = hidden.tiles * hidden.splits
    launch(
        parameter_gradient_kernel, (programs + out.tiles * out.splits,), e.device,
        e_ptr=e, eh_ptr=e[-1], dh_ptr=dh, d_gates_ptr=d_gates,
        hidden_ptr=parts[0], out_ptr=parts[1], pitch=rows.pitch, plane_stride=e.stride(0),
        hidden_tiles=hidden.tiles, hidden_programs=programs, hidden_blocks=hidden.blocks,
        hidden_steps=hidden.steps, out_tiles=out.tiles, out_blocks=out.blocks,
        out_steps=out.steps, F=f, PLANES=planes, **taps.constants(),
        **hidden.tiling.of_gradient("HIDDEN"), **out.tiling.of_gradient("OUT"),
        num_warps=out.tiling.num_warps, num_stages=out.tiling.num_stages,
        **arithmetic(e.dtype, uses_tf32(e.dtype)),
    )  # fmt: skip
    return parts[0], parts[1]


def _input_gradients(
    rows: Rows,
    taps: Taps,
    dh: Tensor,
    w: Packed,
    x: Tensor,
    skips: list[Tensor],
    grad_y: Tensor,
    needs: Needs,
) -> dict[str, list[Tensor]]:
    """Those of x and of the skips that are wanted, in one launch."""
    f = x.shape[1]
    skips = skips if needs.skips else []
    wanted = [x] * needs.x + skips
    if not wanted:
        return {}
    grads = [empty_channels_last(image, image.shape[1]) for image in wanted]
    channels = [skip.shape[1] for skip in skips]
    s0, s1 = (*channels, 0, 0)[:2]
    (programs,), _, arguments = input_plan_of(
        rows, taps.adjoint(), f, len(skips) > 0, x.dtype, uses_tf32(x.dtype)
    )
    # x's place is filled where its gradient is not wanted, and so are those of skips.
    images, results = ([x] * (not needs.x) + [*some, x, x] for some in (wanted, grads))
    launch(
        input_gradient_kernel, (programs * (needs.x + planes_of(channels, f)),), x.device,
        g_ptr=dh, w_ptr=w.in_adjoint, nin_ptr=w.nin_adjoint if skips else w.in_adjoint,
        x=tuple(images[:3]), dy_ptr=grad_y, dx=tuple(results[:3]), programs=programs,
        F=f, S0=s0, S1=s1, X=needs.x, **arguments,
    )  # fmt: skip
    named = {"x": grads[:1]} if needs.x else {}
    return named | ({"skips": grads[needs.x :]} if skips else {})
