"""The launches of a gated resnet but for their tensors, worked out once for each shape."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import torch

from . import tilings
from .expand import BLOCK_P, expand_plan
from .geometry import Dropout, Operands, Rows, Taps, cdiv, planes_of
from .launch import Plan, accumulator_of, arithmetic, arithmetic_of
from .tilings import GradientPlan
from .weight_gradients import BLOCK_S, unpack_programs
from .weights import BLOCK_D, BLOCK_K, Packed

Strides = tuple[tuple[int, int, int], ...]


class Needs(NamedTuple):
    """Which gradients are wanted: of x, of the skips, of all parameters."""

    x: bool = True
    skips: bool = True
    parameters: bool = True


class BlockShape(NamedTuple):
    """The shape of a gated resnet, which its launches follow from.

    size: of x, (B, F, H, W). skip_channels: of each skip. dropout: without its seed; None without
    dropout. image_bias: whether images have biases.
    """

    size: tuple[int, ...]
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
        seedless = None if dropout.seed is None else Dropout(None, *dropout[1:])
        return cls(x.shape, channels, taps, seedless, biased, x.dtype, *arithmetic_of(x))

    @property
    def filters(self) -> int:
        return self.size[1]

    @property
    def rows(self) -> Rows:
        return Rows.of(self.size, self.taps)

    @property
    def planes(self) -> int:
        """Planes of F channels that the skips take."""
        return planes_of(self.skip_channels, self.filters)

    @property
    def drops(self) -> bool:
        return self.dropout is not None

    @property
    def scale(self) -> float:
        """Factor of the elements that dropout keeps."""
        return self.dropout.scale if self.dropout else 1.0

    @property
    def packed(self) -> Packed:
        return Packed.of(self.filters, self.taps, self.planes)

    def first(self, channels: int, plane: int = 0) -> int:
        """First number of row 0 of a plane, behind its margin and the planes before it."""
        rows = self.rows
        return (plane * rows.length + rows.margin) * channels


class ForwardPlan(NamedTuple):
    expand: Plan
    hidden: Plan
    gate: Plan


class BackwardPlan(NamedTuple):
    """gate: where A and G are computed again. gate_sums, hidden_sums: the sizes of the parts of the
    biases' gradients. parts: those of the weights' gradients. last: input_gradient_kernel, or
    unpack_kernel if no input's gradient is wanted."""

    rows: Rows
    expand: Plan
    gate: Plan
    gate_sums: tuple[int, int]
    hidden: Plan
    hidden_sums: tuple[int, int]
    parameters: Plan
    parts: tuple[tuple[int, int, int], tuple[int, int, int]]
    last: Plan


@functools.lru_cache(maxsize=4096)
def forward_plan(block: BlockShape, keep: bool) -> ForwardPlan:
    """keep: whether A and G are kept."""
    f, planes = block.filters, block.planes
    of_h = block.first(2 * f, planes + 1)
    bits = {"kept_ptr": block.first(f)} if block.drops else {}
    hidden = matmul_plan(
        block, block.taps, 2 * f, f, planes,
        starts={"e_ptr": block.first(2 * f), "eh_ptr": of_h, **bits},
        PLANES=planes, plane_stride=block.rows.length * 2 * f,
        DROPOUT=block.drops, SCALE=block.scale,
    )  # fmt: skip
    gate = matmul_plan(
        block, block.taps, 2 * f, 2 * f, starts={"e_ptr": of_h, "w_ptr": block.packed.out},
        GRAD=False, KEEP=keep, IMAGE_BIAS=block.image_bias,
    )  # fmt: skip
    expand = expand_plan(block.rows, f, block.skip_channels, block.dropout)
    return ForwardPlan(expand, hidden, gate)


@functools.lru_cache(maxsize=4096)
def backward_plan(
    block: BlockShape, needs: Needs, kept: bool, strides: Strides, normed: bool
) -> BackwardPlan:
    """kept: whether A and G were. strides: of the three weights, as `weights.strides_of` has them;
    normed: whether they have gains."""
    f = block.filters
    of_h = block.first(2 * f, block.planes + 1 if needs.parameters else 0)
    bits = {"kept_ptr": block.first(f)} if block.drops else {}
    gate = matmul_plan(
        block, block.taps, 2 * f, 2 * f,
        starts={"e_ptr": of_h, "w_ptr": block.packed.out, "out_ptr": block.first(2 * f)},
        GRAD=True, KEEP=False, IMAGE_BIAS=block.image_bias,
    )  # fmt: skip
    hidden = matmul_plan(
        block, block.taps.adjoint(), 2 * f, 2 * f,
        starts={
            "g_ptr": block.first(2 * f), "w_ptr": block.packed.out_adjoint,
            "dh_ptr": block.first(f), **bits,
        },
        DROPOUT=block.drops, SCALE=block.scale,
    )  # fmt: skip
    t = block.taps.kh * block.taps.kw
    ks = (2 * f * (t + block.planes), 2 * f * t)
    divided = tilings.block_gradient_plans(
        block.rows.total, ks, f, block.dtype, block.tf32, block.capability
    )
    parts = (divided[0].splits, ks[0], f), (divided[1].splits, ks[1], 2 * f)
    # Kept gates have sums over the blocks of rows of expand_kernel.
    rows = block.rows.length if kept else block.rows.pixels
    gate_blocks = cdiv(rows, BLOCK_P if kept else gate.arguments["BLOCK_P"])
    hidden_blocks = cdiv(block.rows.pixels, hidden.arguments["BLOCK_P"])
    counts = (parts[0][0], parts[1][0], hidden_blocks, gate_blocks)
    unpack = {"counts": counts, "strides": strides, "NORMED": normed}
    expand = expand_plan(
        block.rows, f, block.skip_channels, block.dropout,
        inputs=needs.parameters, backward=True, gates=kept,
    )  # fmt: skip
    return BackwardPlan(
        block.rows, expand, gate, (gate_blocks, 2 * f), hidden, (hidden_blocks, f),
        parameter_gradient_plan(block, divided), parts, last_plan(block, needs, unpack),
    )  # fmt: skip


def matmul_plan(
    block: BlockShape,
    taps: Taps,
    channels: int,
    columns: int,
    planes: int = 0,
    *,
    starts: dict[str, int],
    **constants: Any,
) -> Plan:
    """The plan of a matmul of pixels by so many columns, with its epilogue."""
    rows, k = block.rows, (taps.kh * taps.kw + planes) * channels
    tiling = tilings.matmul_tiling(
        rows.pixels, columns, k, block.dtype, block.tf32, block.capability
    )
    return Plan(
        (cdiv(rows.pixels, tiling.block_p) * cdiv(columns, tiling.block_n),), starts=starts,
        steps=cdiv(k, tiling.block_k),
        F=block.filters, **rows.arguments(), **taps.constants(),
        **arithmetic(block.dtype, block.tf32), **tiling.kernel_options(), **constants,
    )  # fmt: skip


def parameter_gradient_plan(block: BlockShape, divided: tuple[GradientPlan, GradientPlan]) -> Plan:
    """The plan of parameter_gradient_kernel."""
    f, (hidden, out) = block.filters, divided
    programs = hidden.tiles * hidden.splits
    return Plan(
        (programs + out.tiles * out.splits,),
        starts={
            "e_ptr": block.first(2 * f), "eh_ptr": block.first(2 * f, block.planes + 1),
            "dh_ptr": block.first(f), "d_gates_ptr": block.first(2 * f),
        },
        pitch=block.rows.pitch, plane_stride=block.rows.length * 2 * f,
        hidden_tiles=hidden.tiles, hidden_programs=programs, hidden_blocks=hidden.blocks,
        hidden_steps=hidden.steps, out_tiles=out.tiles, out_blocks=out.blocks,
        out_steps=out.steps, F=f, PLANES=block.planes, PART=tilings.gradient_part(2 * f),
        **block.taps.constants(),
        **hidden.tiling.of_gradient("HIDDEN"), **out.tiling.of_gradient("OUT"),
        num_warps=out.tiling.num_warps, num_stages=out.tiling.num_stages,
        **arithmetic(block.dtype, block.tf32),
    )  # fmt: skip


def last_plan(block: BlockShape, needs: Needs, unpack: dict[str, Any]) -> Plan:
    """The plan of input_gradient_kernel, or of unpack_kernel where no input's gradient is wanted.

    Planes of skips have steps of their own. unpack: the settings of `unpack_block`."""
    f, planes, channels = block.filters, block.planes, block.skip_channels
    s0, s1 = (*channels, 0, 0)[:2]
    skips = needs.skips and planes > 0
    first = unpack_programs(f, planes) if needs.parameters else 0
    if not (needs.x or skips):
        return Plan(
            (first,), F=f, S0=s0, S1=s1, PLANES=planes, T=block.taps.kh * block.taps.kw,
            ACC=accumulator_of(block.dtype), BLOCK_S=BLOCK_S, BLOCK_K=BLOCK_K, BLOCK_D=BLOCK_D,
            num_warps=8, **unpack,
        )  # fmt: skip
    one = matmul_plan(block, block.taps.adjoint(), f, 2 * f, starts={})
    nothing = {"counts": None, "strides": None, "NORMED": False}
    return Plan(
        (first + one.programs * (needs.x + skips * planes),),
        starts={
            "g_ptr": block.first(f), "w_ptr": block.packed.in_adjoint,
            "nin_ptr": block.packed.nin_adjoint if skips else 0,
        },
        programs=one.programs, first_program=first, S0=s0, S1=s1, PLANES=planes, X=needs.x,
        SKIPS=skips, UNPACK=needs.parameters,
        UNPACK_S=BLOCK_S, UNPACK_K=BLOCK_K, UNPACK_D=BLOCK_D,
        point_steps=cdiv(f, one.arguments["BLOCK_K"]), **one.arguments,
        **(unpack if needs.parameters else nothing),
    )  # fmt: skip
