"""The gated resnet: matmuls of rows (`matmul.py`) and their epilogues.

    h = conv_in(E(x)) + nin(E(a)) + biases           hidden_kernel
    y = x + A sigmoid(G), (A, G) = conv_out(D E(h))  gate_kernel

with E = concat_elu and dropout D; (A, G) plus a bias of each image, if there is one. `expand`
writes E(x), hidden_kernel ends in D E(h) too. Backward, E is written again, and each data gradient
ends with the slopes of elu. Saved for it are h, the packed weights and, if they are to be kept, A
and G; else gate_kernel with GRAD computes them anew.

What a launch takes beside tensors follows from the shape of a block: plans are kept for each.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import torch
from torch import Tensor

from . import tilings
from .expand import BLOCK_P, expand, expand_plan
from .gated_resnet_kernels import (
    gate_kernel,
    hidden_gradient_kernel,
    hidden_kernel,
    input_gradient_kernel,
    parameter_gradient_kernel,
)
from .geometry import (
    Dropout,
    Operands,
    Rows,
    Taps,
    cdiv,
    channels_last,
    empty_channels_last,
    packed_sizes,
    planes_of,
)
from .launch import Plan, accumulator_of, arithmetic_of, launch
from .weight_gradients import BLOCK_S, NOTHING, unpack_kernel, unpack_programs, unpacking
from .weights import BLOCK_D, BLOCK_K, dense, pack, pad_to_three, strides_of

Strides = tuple[tuple[int, int, int], ...]


class Saved(NamedTuple):
    """Results of the forward that the backward reads: h (B, F, H, W), the packed weights, and A and
    G as (B, 2F, H, W) if they are kept; images are channels_last."""

    h: Tensor
    packed: Tensor
    gates: Tensor | None


class Needs(NamedTuple):
    """Which gradients are wanted: of x, of the skips, of all parameters."""

    x: bool = True
    skips: bool = True
    parameters: bool = True


EVERYTHING = Needs()


class BlockShape(NamedTuple):
    """The shape of a gated resnet, which its launches follow from.

    skip_channels: of each skip. dropout: None without a seed. image_bias: whether images have
    biases. tf32: whether float32 may round to TF32.
    """

    rows: Rows
    filters: int
    skip_channels: tuple[int, ...]
    taps: Taps
    dropout: Dropout | None
    image_bias: bool
    dtype: torch.dtype
    tf32: bool
    capability: int

    @classmethod
    def of(cls, given: Operands, taps: Taps, dropout: Dropout) -> BlockShape:
        x, biased = given.x, given.image_bias is not None
        channels = tuple([skip.shape[1] for skip in given.skips])
        dropped = None if given.seed is None else dropout
        shape = Rows.of(x.shape, taps), x.shape[1], channels, taps, dropped, biased
        return cls(*shape, x.dtype, *arithmetic_of(x))

    @property
    def planes(self) -> int:
        """Planes of F channels that the skips take."""
        return planes_of(self.skip_channels, self.filters)

    def arithmetic(self) -> dict[str, Any]:
        """Constexprs: the accumulator's dtype and how float32 operands are multiplied."""
        return {"ACC": accumulator_of(self.dtype), "PRECISION": "tf32" if self.tf32 else "ieee"}

    def drops(self) -> dict[str, Any]:
        """Constexprs: whether there is dropout, and the factor of the elements that it keeps."""
        scale = self.dropout.scale if self.dropout else 1.0
        return {"DROPOUT": self.dropout is not None, "SCALE": scale}


def forward(
    given: Operands, taps: Taps, dropout: Dropout, save: bool = True, keep: bool = False
) -> tuple[Tensor, Saved]:
    """y (B, F, H, W) channels_last, and the results that the backward needs.

    Without `save`, the packed weights lack the adjoints; keep: whether A and G are saved. Without a
    seed there is no dropout.
    """
    given = _readable(given)
    x, f = given.x, given.x.shape[1]
    block = BlockShape.of(given, taps, dropout)
    rows, plans = block.rows, forward_plans(block, keep)
    packed = pack(given, adjoint=save)
    w_hidden, w_out = _parts(packed, given, save)[:2]
    h, y = (empty_channels_last(x, f) for _ in range(2))
    gates = empty_channels_last(x, 2 * f) if keep else None
    e, kept = expand(plans.expand, given, x)
    eh = rows.first(e, -1)
    launch(
        hidden_kernel, plans.hidden, x.device,
        e_ptr=rows.first(e), w_ptr=w_hidden, bias_ptr=given.bias_in,
        nin_bias_ptr=given.bias_in if given.bias_nin is None else given.bias_nin, h_ptr=h,
        kept_ptr=x if kept is None else rows.first(kept), eh_ptr=eh,
    )  # fmt: skip
    _gate(plans.gate, eh, w_out, given, x_ptr=x, out_ptr=y, gates_ptr=y if gates is None else gates)
    return y, Saved(h, packed, gates)


def _readable(given: Operands) -> Operands:
    """The operands in memory orders that the kernels read: images channels_last, weights dense,
    vectors contiguous."""
    orders = [channels_last] * 3 + [dense] * (len(given) - 3)
    return Operands._make(
        None if tensor is None else order(tensor)
        for order, tensor in zip(orders, given, strict=True)
    )


def _parts(packed: Tensor, given: Operands, adjoint: bool) -> tuple[Tensor, ...]:
    """The parts of the packed weights, as `packed_sizes` orders them."""
    channels = [skip.shape[1] for skip in given.skips]
    return packed.split(packed_sizes(given.conv_in, channels, adjoint))


def _gate(plan: Plan, e: Tensor, w: Tensor, given: Operands, **tensors: Tensor) -> None:
    """gate_kernel; its result stands in for sums that it does not write."""
    bias = given.bias_out
    image_bias = bias if given.image_bias is None else given.image_bias
    tensors = {"sums_ptr": tensors["out_ptr"], **tensors}
    launch(
        gate_kernel, plan, e.device, e_ptr=e, w_ptr=w, bias_ptr=bias, image_bias_ptr=image_bias,
        **tensors,
    )  # fmt: skip


def backward(
    grad_y: Tensor,
    saved: Saved,
    given: Operands,
    taps: Taps,
    dropout: Dropout,
    needs: Needs = EVERYTHING,
) -> dict[str, Tensor]:
    """The gradients that are needed, by the names of the operands."""
    given = _readable(given)
    x, h, grad_y = given.x, channels_last(saved.h), channels_last(grad_y)
    gates = None if saved.gates is None else channels_last(saved.gates)
    block = BlockShape.of(given, taps, dropout)
    strides = tuple([strides_of(weight) for weight in pad_to_three(given.weights)])
    plans = backward_plans(block, needs, gates is not None, strides, given.gain_in is not None)
    f, rows = block.filters, block.rows
    _, w_out, w_out_adjoint, w_in_adjoint, w_nin_adjoint = _parts(saved.packed, given, True)
    gates_room, dh_room = rows.empty(x, 2 * f), rows.empty(x, f)
    d_gates, dh = rows.first(gates_room), rows.first(dh_room)
    wide = torch.float64 if x.dtype == torch.float64 else torch.float32
    out_sums, in_sums, hidden, out = (
        torch.empty(size, dtype=wide, device=x.device) for size in plans.sizes
    )
    e, kept = expand(
        plans.expand, given, h,
        d_gates=gates_room, dh=dh_room, gates=gates, grad_y=grad_y, sums=out_sums,
    )  # fmt: skip
    eh = rows.first(e, -1)
    if gates is None:
        _gate(
            plans.gate, eh, w_out, given,
            x_ptr=grad_y, out_ptr=d_gates, gates_ptr=d_gates, sums_ptr=out_sums,
        )  # fmt: skip
    launch(
        hidden_gradient_kernel, plans.hidden, x.device,
        g_ptr=d_gates, w_ptr=w_out_adjoint, h_ptr=h,
        kept_ptr=x if kept is None else rows.first(kept), dh_ptr=dh, sums_ptr=in_sums,
    )  # fmt: skip
    grads: dict[str, Tensor] = {}
    unpacked = NOTHING
    if needs.parameters:
        launch(
            parameter_gradient_kernel, plans.parameters, x.device, e_ptr=rows.first(e), eh_ptr=eh,
            dh_ptr=dh, d_gates_ptr=d_gates, hidden_ptr=hidden, out_ptr=out,
        )  # fmt: skip
        grads, unpacked = unpacking((hidden, out), (in_sums, out_sums), given)
        if given.image_bias is not None:
            # The rows of an image follow one another, with zeros where there is no pixel.
            count = rows.batch * (rows.height + rows.above) * rows.pitch
            of_images = d_gates[:count].view(rows.batch, -1, 2 * f)
            grads["image_bias"] = of_images.sum(1, dtype=given.image_bias.dtype)
    inputs = {"x": x} if needs.x else {}
    if needs.skips:
        inputs |= dict(zip(("skip", "skip_2"), given.skips, strict=False))
    if not inputs:
        if needs.parameters:
            launch(unpack_kernel, plans.last, x.device, **unpacked)
        return grads
    of_inputs = {name: empty_channels_last(t, t.shape[1]) for name, t in inputs.items()}
    # x's place is filled where its gradient is not wanted, and so are those of skips.
    images, results = (
        tuple([x] * (not needs.x) + [*some.values(), x, x])[:3] for some in (inputs, of_inputs)
    )
    launch(
        input_gradient_kernel, plans.last, x.device, g_ptr=dh, w_ptr=w_in_adjoint,
        nin_ptr=w_nin_adjoint if given.skips else w_in_adjoint, x=images, dy_ptr=grad_y, dx=results,
        **unpacked,
    )  # fmt: skip
    return grads | of_inputs


# ---- plans ------------------------------------------------------------------------------------


class ForwardPlans(NamedTuple):
    expand: Plan
    hidden: Plan
    gate: Plan


class BackwardPlans(NamedTuple):
    """gate: where A and G are computed again. last: input_gradient_kernel, or unpack_kernel if no
    input's gradient is wanted. sizes: of the parts of the gradients of bias_out, bias_in, the
    weights of h and conv_out."""

    expand: Plan
    gate: Plan
    hidden: Plan
    parameters: Plan
    last: Plan
    sizes: tuple[tuple[int, ...], ...]


@functools.lru_cache(maxsize=4096)
def forward_plans(block: BlockShape, keep: bool) -> ForwardPlans:
    """keep: whether A and G are kept."""
    f = block.filters
    hidden = matmul_plan(
        block, block.taps, 2 * f, f, block.planes,
        PLANES=block.planes, plane_stride=block.rows.length * 2 * f, **block.drops(),
    )  # fmt: skip
    gate = matmul_plan(
        block, block.taps, 2 * f, 2 * f, GRAD=False, KEEP=keep, IMAGE_BIAS=block.image_bias
    )
    expand = expand_plan(block.rows, f, block.skip_channels, block.dropout)
    return ForwardPlans(expand, hidden, gate)


@functools.lru_cache(maxsize=4096)
def backward_plans(
    block: BlockShape, needs: Needs, kept: bool, strides: Strides, normed: bool
) -> BackwardPlans:
    """kept: whether A and G were. strides: of the three weights, as `weights.strides_of` has them;
    normed: whether they have gains."""
    f, rows, t = block.filters, block.rows, block.taps.kh * block.taps.kw
    gate = matmul_plan(
        block, block.taps, 2 * f, 2 * f, GRAD=True, KEEP=False, IMAGE_BIAS=block.image_bias
    )
    hidden = matmul_plan(block, block.taps.adjoint(), 2 * f, 2 * f, **block.drops())
    ks = (2 * f * (t + block.planes), 2 * f * t)
    divided = tilings.block_gradient_plans(
        rows.total, ks, f, block.dtype, block.tf32, block.capability
    )
    # Kept gates have sums over the blocks of rows of expand_kernel.
    gate_blocks = cdiv(rows.pixels, gate.arguments["BLOCK_P"])
    gate_blocks = cdiv(rows.length, BLOCK_P) if kept else gate_blocks
    hidden_blocks = cdiv(rows.pixels, hidden.arguments["BLOCK_P"])
    splits = divided[0].splits, divided[1].splits
    counts = (*splits, hidden_blocks, gate_blocks)
    sums = (gate_blocks, 2 * f), (hidden_blocks, f)
    sizes = (*sums, (splits[0], ks[0], f), (splits[1], ks[1], 2 * f))
    expand = expand_plan(
        rows, f, block.skip_channels, block.dropout,
        inputs=needs.parameters, backward=True, gates=kept,
    )  # fmt: skip
    last = last_plan(block, needs, counts=counts, strides=strides, NORMED=normed)
    return BackwardPlans(expand, gate, hidden, parameter_plan(block, *divided), last, sizes)


def matmul_plan(
    block: BlockShape, taps: Taps, channels: int, columns: int, planes: int = 0, **constants: Any
) -> Plan:
    """The plan of a matmul of pixels by so many columns, with its epilogue."""
    rows, k = block.rows, (taps.kh * taps.kw + planes) * channels
    tiling = tilings.matmul_tiling(
        rows.pixels, columns, k, block.dtype, block.tf32, block.capability
    )
    return Plan(
        (cdiv(rows.pixels, tiling.block_p) * cdiv(columns, tiling.block_n),),
        steps=cdiv(k, tiling.block_k), F=block.filters, **rows.arguments(), **taps.constants(),
        **block.arithmetic(), **tiling.kernel_options(), **constants,
    )  # fmt: skip


def parameter_plan(
    block: BlockShape, hidden: tilings.GradientPlan, out: tilings.GradientPlan
) -> Plan:
    """The plan of parameter_gradient_kernel."""
    f, programs = block.filters, hidden.tiles * hidden.splits
    return Plan(
        (programs + out.tiles * out.splits,),
        pitch=block.rows.pitch, plane_stride=block.rows.length * 2 * f,
        hidden_tiles=hidden.tiles, hidden_programs=programs, hidden_blocks=hidden.blocks,
        hidden_steps=hidden.steps, out_tiles=out.tiles, out_blocks=out.blocks,
        out_steps=out.steps, F=f, PLANES=block.planes, PART=tilings.gradient_part(2 * f),
        **block.taps.constants(),
        **hidden.tiling.of_gradient("HIDDEN"), **out.tiling.of_gradient("OUT"),
        num_warps=out.tiling.num_warps, num_stages=out.tiling.num_stages, **block.arithmetic(),
    )  # fmt: skip


def last_plan(block: BlockShape, needs: Needs, **unpack: Any) -> Plan:
    """The plan of input_gradient_kernel, or of unpack_kernel where no input's gradient is wanted.

    Planes of skips have steps of their own. unpack: the settings of `unpack_block`."""
    f, planes = block.filters, block.planes
    s0, s1 = (*block.skip_channels, 0, 0)[:2]
    skips = needs.skips and planes > 0
    first = unpack_programs(f, planes) if needs.parameters else 0
    shape = {"F": f, "S0": s0, "S1": s1, "PLANES": planes}
    if not (needs.x or skips):
        return Plan(
            (first,), **shape, T=block.taps.kh * block.taps.kw, ACC=accumulator_of(block.dtype),
            BLOCK_S=BLOCK_S, BLOCK_K=BLOCK_K, BLOCK_D=BLOCK_D, num_warps=8, **unpack,
        )  # fmt: skip
    if not needs.parameters:
        unpack = {"counts": None, "strides": None, "NORMED": False}
    one = matmul_plan(block, block.taps.adjoint(), f, 2 * f)
    return Plan(
        (first + one.programs * (needs.x + skips * planes),),
        programs=one.programs, first_program=first, X=needs.x, SKIPS=skips,
        UNPACK=needs.parameters, UNPACK_S=BLOCK_S, UNPACK_K=BLOCK_K, UNPACK_D=BLOCK_D,
        point_steps=cdiv(f, one.arguments["BLOCK_K"]), **(one.arguments | shape), **unpack,
    )  # fmt: skip
