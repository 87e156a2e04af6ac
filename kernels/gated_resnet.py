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
from .launch import (
    Plan,
    arithmetic,
    block_gradient_plans,
    launch,
    plan,
    uses_tf32,
    wide_dtype,
)
from .tilings import GradientPlan
from .weight_gradients import (
    BLOCK_S,
    NO_SETTINGS,
    NOTHING,
    Unpacking,
    UnpackSettings,
    unpack,
    unpacking,
)
from .weights import BLOCK_D, BLOCK_K, Packed, pack, parts_of


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


# Plans are worked out once for each shape: a step has hundreds of launches.
@functools.lru_cache(maxsize=4096)
def matmul_plan(
    rows: Rows,
    taps: Taps,
    channels: int,
    columns: int,
    planes: int,
    dtype: torch.dtype,
    tf32: bool,
    **constants: Any,
) -> Plan:
    """Of a kernel that ends a matmul of `rows` by so many columns."""
    # The contracted index as in `accumulate`: how many runs, and how long.
    runs = ((taps.kh, taps.kw * channels), (planes, channels))
    tiling = tilings.matmul_tiling(rows.total, columns, runs, dtype, tf32)
    return plan(
        (rows.total // tiling.block_p * cdiv(columns, tiling.block_n),),
        steps=sum(count * cdiv(length, tiling.block_k) for count, length in runs),
        **rows.arguments(), **taps.constants(), **arithmetic(dtype, tf32),
        **tiling.kernel_options(), **constants,
    )  # fmt: skip


@functools.lru_cache(maxsize=4096)
def input_gradient_plan(
    rows: Rows,
    taps: Taps,
    filters: int,
    skip_channels: tuple[int, ...],
    needs: Needs,
    unpacked: UnpackSettings | None,
    dtype: torch.dtype,
    tf32: bool,
) -> Plan:
    """Of input_gradient_kernel, whose planes of skips have steps of their own."""
    needs_skips = needs.skips and len(skip_channels) > 0
    one = matmul_plan(rows, taps, filters, 2 * filters, int(needs_skips), dtype, tf32, F=filters)
    point_steps = cdiv(filters, one.arguments["BLOCK_K"])
    steps = one.arguments["steps"] - needs_skips * point_steps
    planes, (s0, s1) = planes_of(skip_channels, filters), (*skip_channels, 0, 0)[:2]
    wanted = needs.x + needs_skips * planes
    first = 0 if unpacked is None else unpacked.programs
    arguments = {**one.arguments, "steps": steps, "point_steps": point_steps}
    return plan(
        (first + one.programs * wanted,), programs=one.programs, first_program=first,
        S0=s0, S1=s1, PLANES=planes, X=needs.x, SKIPS=needs_skips, UNPACK=unpacked is not None,
        UNPACK_S=BLOCK_S, UNPACK_K=BLOCK_K, UNPACK_D=BLOCK_D,
        **arguments, **(NO_SETTINGS if unpacked is None else unpacked.arguments()),
    )  # fmt: skip


@functools.lru_cache(maxsize=4096)
def parameter_gradient_plan(
    rows: Rows,
    taps: Taps,
    filters: int,
    planes: int,
    plane_stride: int,
    divided: tuple[GradientPlan, GradientPlan],
    dtype: torch.dtype,
    tf32: bool,
) -> Plan:
    """Of parameter_gradient_kernel."""
    hidden, out = divided
    programs = hidden.tiles * hidden.splits
    return plan(
        (programs + out.tiles * out.splits,), pitch=rows.pitch, plane_stride=plane_stride,
        hidden_tiles=hidden.tiles, hidden_programs=programs, hidden_blocks=hidden.blocks,
        hidden_steps=hidden.steps, out_tiles=out.tiles, out_blocks=out.blocks,
        out_steps=out.steps, F=filters, PLANES=planes, **taps.constants(),
        **hidden.tiling.of_gradient("HIDDEN"), **out.tiling.of_gradient("OUT"),
        num_warps=out.tiling.num_warps, num_stages=out.tiling.num_stages,
        **arithmetic(dtype, tf32),
    )  # fmt: skip


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
    packed: Tensor | None = None,
) -> tuple[Tensor, Saved]:
    """y (B, F, H, W) channels_last, and what the backward needs.

    weights, biases, gains: of conv_in, conv_out and, with skips, nin_skip; gains may be none.
    image_bias: (B, 2F), contiguous, or none. packed: the weights packed already, as by
    `weights.pack`, or none.
    Without `save`, the packed weights lack what the backward alone reads; keep: A and G are saved.
    """
    x, skips = channels_last(x), [channels_last(skip) for skip in skips]
    f = x.shape[1]
    channels = [skip.shape[1] for skip in skips]
    rows, planes = Rows.of(x, taps), planes_of(channels, f)
    if packed is None:
        packed = pack(weights, gains, channels, x.dtype, adjoint=save)
    h, y = (empty_channels_last(x, f) for _ in range(2))
    gates = empty_channels_last(x, 2 * f) if keep else None
    e, kept = expand_forward(rows, x, skips, dropout)
    eh = e[-1]
    planned = matmul_plan(
        rows, taps, 2 * f, f, planes, x.dtype, uses_tf32(x.dtype), F=f, PLANES=planes,
        plane_stride=e.stride(0), DROPOUT=kept is not None, SCALE=dropout.scale,
    )  # fmt: skip
    launch(
        hidden_kernel, planned, x.device,
        e_ptr=e, w_ptr=packed, bias_ptr=biases[0], nin_bias_ptr=biases[-1], h_ptr=h,
        kept_ptr=x if kept is None else kept, eh_ptr=eh,
    )  # fmt: skip
    w_out = packed[2 * f * f * (taps.kh * taps.kw + planes) :]
    _gate(rows, taps, eh, w_out, biases[1], image_bias, x, y, gates=gates)
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
    grad: bool = False,
) -> Tensor:
    """gate_kernel, with KEEP if there are `gates`; with GRAD it has sums, which are returned."""
    f = x.shape[1]
    planned = matmul_plan(
        rows, taps, 2 * f, 2 * f, 0, x.dtype, uses_tf32(x.dtype),
        F=f, GRAD=grad, KEEP=gates is not None, IMAGE_BIAS=image_bias is not None,
    )  # fmt: skip
    sums = _block_sums(rows, planned, 2 * f, x) if grad else out
    launch(
        gate_kernel, planned, x.device,
        e_ptr=e, w_ptr=w, bias_ptr=bias, image_bias_ptr=bias if image_bias is None else image_bias,
        x_ptr=x, out_ptr=out, gates_ptr=out if gates is None else gates, sums_ptr=sums,
    )  # fmt: skip
    return sums


def _block_sums(rows: Rows, planned: Plan, n: int, x: Tensor) -> Tensor:
    """Room for sums over each block of rows of a matmul, (blocks, n)."""
    size = (rows.total // planned.arguments["BLOCK_P"], n)
    return torch.empty(size, dtype=wide_dtype(x.dtype), device=x.device)


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
        out_sums = _gate(
            rows, taps, e[-1], w.out, biases[1], image_bias, grad_y, d_gates, grad=True
        )
    planned = matmul_plan(
        rows, taps.adjoint(), 2 * f, 2 * f, 0, x.dtype, uses_tf32(x.dtype),
        F=f, DROPOUT=kept is not None, SCALE=dropout.scale,
    )  # fmt: skip
    in_sums = _block_sums(rows, planned, f, x)
    launch(
        hidden_gradient_kernel, planned, x.device,
        g_ptr=d_gates, w_ptr=w.out_adjoint, h_ptr=h, kept_ptr=x if kept is None else kept,
        dh_ptr=dh, sums_ptr=in_sums,
    )  # fmt: skip
    grads: dict[str, list[Tensor]] = {}
    unpacked = None
    if needs.parameters:
        parts = _parameter_gradients(rows, taps, e, dh, d_gates, planes)
        unpacked = unpacking(parts, (in_sums, out_sums), weights, gains)
        grads = {"weights": unpacked.weights, "biases": unpacked.biases, "gains": unpacked.gains}
    if needs.parameters and image_bias is not None:
        # The rows of an image follow one another, with zeros where there is no pixel.
        lines = rows.batch * (rows.height + rows.above)
        of_images = d_gates[0, : lines * rows.pitch].view(rows.batch, -1, 2 * f)
        grads["image_bias"] = [of_images.sum(1, dtype=image_bias.dtype)]
    return grads | _last_gradients(rows, taps, dh, w, x, skips, grad_y, needs, unpacked)


def _parameter_gradients(
    rows: Rows, taps: Taps, e: Tensor, dh: Tensor, d_gates: Tensor, planes: int
) -> tuple[Tensor, Tensor]:
    """Parts (splits, K, D) of the gradients of packed weights: of h's convolutions, of the gates'.

    Sums are float32 (float64 for float64), in an order that only the shape decides.
    """
    f, t = dh.shape[2], taps.kh * taps.kw
    ks = (2 * f * (t + planes), 2 * f * t)
    divided = block_gradient_plans(rows.total, ks, f, e)
    parts = [
        torch.empty((one.splits, k, d), dtype=wide_dtype(e.dtype), device=e.device)
        for one, k, d in zip(divided, ks, (f, 2 * f), strict=True)
    ]
    planned = parameter_gradient_plan(
        rows, taps, f, planes, e.stride(0), divided, e.dtype, uses_tf32(e.dtype)
    )
    launch(
        parameter_gradient_kernel, planned, e.device, e_ptr=e, eh_ptr=e[-1], dh_ptr=dh,
        d_gates_ptr=d_gates, hidden_ptr=parts[0], out_ptr=parts[1],
    )  # fmt: skip
    return parts[0], parts[1]


def _last_gradients(
    rows: Rows,
    taps: Taps,
    dh: Tensor,
    w: Packed,
    x: Tensor,
    skips: list[Tensor],
    grad_y: Tensor,
    needs: Needs,
    unpacked: Unpacking | None,
) -> dict[str, list[Tensor]]:
    """Those of x and of the skips that are wanted, and what is `unpacked`, in one launch."""
    f, channels = x.shape[1], tuple([skip.shape[1] for skip in skips])
    wanted = [x] * needs.x + (skips if needs.skips else [])
    if not wanted:
        if unpacked is not None:
            unpack(unpacked, f, channels, taps.kh * taps.kw)
        return {}
    grads = [empty_channels_last(image, image.shape[1]) for image in wanted]
    settings = None if unpacked is None else unpacked.settings
    planned = input_gradient_plan(
        rows, taps.adjoint(), f, channels, needs, settings, x.dtype, uses_tf32(x.dtype)
    )
    # x's place is filled where its gradient is not wanted, and so are those of skips.
    images, results = ([x] * (not needs.x) + [*some, x, x] for some in (wanted, grads))
    launch(
        input_gradient_kernel, planned, x.device,
        g_ptr=dh, w_ptr=w.in_adjoint, nin_ptr=w.nin_adjoint if skips else w.in_adjoint,
        x=tuple(images[:3]), dy_ptr=grad_y, dx=tuple(results[:3]),
        **(NOTHING if unpacked is None else unpacked.tensors),
    )  # fmt: skip
    named = {"x": grads[:1]} if needs.x else {}
    return named | ({"skips": grads[needs.x :]} if needs.skips and skips else {})
