"""The gated resnet: matmuls of rows (`matmul.py`) and their epilogues.

    h = conv_in(E(x)) + nin(E(a)) + biases           hidden_kernel
    y = x + A sigmoid(G), (A, G) = conv_out(D E(h))  gate_kernel

with E = concat_elu and dropout D. `expand` writes E(x), and hidden_kernel writes D E(h). The
backward recomputes E, and the epilogue of each data gradient applies the slopes of elu. The forward
saves h, A and G, and the packed weights. Launches are prepared once per shape.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import torch
import triton.language as tl
from torch import Tensor

from . import tilings
from .expand import BLOCK_P, expand, prepare_expand
from .gated_resnet_kernels import (
    gate_kernel,
    hidden_gradient_kernel,
    hidden_kernel,
    last_gradients_kernel,
    parameter_gradient_kernel,
)
from .geometry import (
    POINT,
    Geometry,
    Operands,
    PaddedImages,
    Settings,
    Taps,
    cdiv,
    channels_last,
    empty_channels_last,
    packed_sizes,
    planes_of,
)
from .launch import Prepared, arithmetic_of, launch
from .weights import BLOCK_D, Strides, Unpacked, pack, pad_to_three, strides_of, unpacking


class Needs(NamedTuple):
    """Which gradients to compute: of x, of the skips, of all parameters."""

    x: bool = True
    skips: bool = True
    parameters: bool = True


class ResnetShape(NamedTuple):
    """The shape of a gated resnet, which determines its launches."""

    rows: PaddedImages
    filters: int
    skip_channels: tuple[int, ...]
    taps: Taps
    settings: Settings
    image_bias: bool
    dtype: torch.dtype
    numbers: tilings.Format
    capability: int

    @classmethod
    def of(cls, operands: Operands, settings: Settings) -> ResnetShape:
        x, taps = operands.x, Taps.of(operands.conv_in, settings.shift)
        settings = settings if settings.dropout > 0 else Settings(settings.shift)
        shape = PaddedImages.of(x.shape, taps), x.shape[1], operands.skip_channels, taps, settings
        return cls(*shape, operands.image_bias is not None, x.dtype, *arithmetic_of(x))

    @property
    def planes(self) -> int:
        return planes_of(self.skip_channels, self.filters)

    def geometry(self, taps: Taps, tiling: tilings.MatmulTiling) -> Geometry:
        """The constants of a matmul with these taps."""
        wide = tl.float64 if self.dtype == torch.float64 else tl.float32
        precision: Literal["tf32", "ieee"] = "tf32" if self.numbers == "tf32" else "ieee"
        return Geometry(taps, self.rows.above, self.rows.before, wide, precision, *tiling[:4])


def forward(
    operands: Operands, settings: Settings, save: bool = True
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """y, h (B, F, H, W), the packed weights, and A and G (B, 2F, H, W), channels_last.

    save: whether a backward follows; without it the packed weights, A and G are empty.
    """
    x, f = operands.x, operands.x.shape[1]
    shape = ResnetShape.of(operands, settings)
    rows, (expanded, hidden, gate) = shape.rows, prepare_forward(shape, save)
    packed = pack(operands, adjoint=save)
    w_hidden, w_out = packed.split(packed_sizes(operands, save))[:2]
    h, y = (empty_channels_last(x, f) for _ in range(2))
    gates = empty_channels_last(x, 2 * f) if save else x.new_empty(0)
    e, kept = expand(expanded, operands, x)
    eh = rows.first(e, -1)
    launch(
        hidden_kernel, hidden, x.device,
        e_ptr=rows.first(e), w_ptr=w_hidden, bias_ptr=operands.bias_in,
        nin_bias_ptr=operands.bias_in if operands.bias_nin is None else operands.bias_nin, h_ptr=h,
        kept_ptr=x if kept is None else rows.first(kept), eh_ptr=eh,
    )  # fmt: skip
    bias = operands.bias_out
    launch(  # an unused pointer gets y; the kernel never writes there
        gate_kernel, gate, x.device, e_ptr=eh, w_ptr=w_out, bias_ptr=bias,
        image_bias_ptr=bias if operands.image_bias is None else operands.image_bias,
        x_ptr=x, y_ptr=y, gates_ptr=gates if save else y,
    )  # fmt: skip
    return y, h, packed if save else x.new_empty(0), gates


def backward(
    grad_y: Tensor, saved: Sequence[Tensor], operands: Operands, settings: Settings, needs: Needs
) -> dict[str, Tensor]:
    """Needed gradients by operand name. saved: the results of `forward` after y."""
    h, packed, gates = saved
    x, h, gates, grad_y = operands.x, *map(channels_last, (h, gates, grad_y))
    shape = ResnetShape.of(operands, settings)
    strides = tuple([strides_of(weight) for weight in pad_to_three(operands.weights)])
    expanded, hidden, parameters, last, sizes = prepare_backward(
        shape, needs, strides, operands.gain_in is not None
    )
    f, rows = shape.filters, shape.rows
    _, _, w_out_adjoint, w_in_adjoint, w_nin_adjoint = packed.contiguous().split(
        packed_sizes(operands, True)
    )
    gates_rows, dh_rows = rows.empty(x, 2 * f), rows.empty(x, f)
    d_gates, dh = rows.first(gates_rows), rows.first(dh_rows)
    wide = torch.float64 if x.dtype == torch.float64 else torch.float32
    out_sums, in_sums, hidden_parts, out_parts = (
        torch.empty(size, dtype=wide, device=x.device) for size in sizes
    )
    e, kept = expand(
        expanded, operands, h,
        d_gates=gates_rows, dh=dh_rows, gates=gates, dy=grad_y, sums=out_sums,
    )  # fmt: skip
    eh = rows.first(e, -1)
    launch(
        hidden_gradient_kernel, hidden, x.device,
        g_ptr=d_gates, w_ptr=w_out_adjoint, h_ptr=h,
        kept_ptr=x if kept is None else rows.first(kept), dh_ptr=dh, sums_ptr=in_sums,
    )  # fmt: skip
    grads: dict[str, Tensor] = {}
    unpacked = Unpacked()
    if needs.parameters:
        launch(
            parameter_gradient_kernel, parameters, x.device, e_ptr=rows.first(e), eh_ptr=eh,
            dh_ptr=dh, d_gates_ptr=d_gates, hidden_ptr=hidden_parts, out_ptr=out_parts,
        )  # fmt: skip
        grads, unpacked = unpacking((hidden_parts, out_parts), (in_sums, out_sums), operands)
        if operands.image_bias is not None:
            # The rows of an image are contiguous, and the padding between its pixels is zero.
            size = rows.batch, (rows.height + rows.above) * rows.pitch, 2 * f
            per_image = d_gates[: size[0] * size[1]].view(size)
            grads["image_bias"] = per_image.sum(1, dtype=operands.image_bias.dtype)
    # Absent images and gradients are replaced by x, which the kernel does not access.
    images = [x, *operands.skips]
    results = [
        empty_channels_last(image, image.shape[1]) if wanted else image
        for image, wanted in zip(images, (needs.x, needs.skips, needs.skips), strict=False)
    ]
    launch(
        last_gradients_kernel, last, x.device, g_ptr=dh, w_ptr=w_in_adjoint,
        nin_ptr=w_nin_adjoint if operands.skips else w_in_adjoint, x=pad_to_three(images),
        dy_ptr=grad_y, dx=pad_to_three(results), parts=unpacked.parts, sums=unpacked.sums,
        v=unpacked.v, gain=unpacked.gain, grad_v=unpacked.grad_v, grad_gain=unpacked.grad_gain,
        grad_bias=unpacked.grad_bias,
    )  # fmt: skip
    wanted = zip(("x", "skip", "skip_2"), images, results, strict=False)
    return grads | {name: dx for name, image, dx in wanted if dx is not image}


@functools.lru_cache(maxsize=4096)
def prepare_forward(shape: ResnetShape, save: bool) -> tuple[Prepared, Prepared, Prepared]:
    """Launches of operands_kernel, hidden_kernel and gate_kernel."""
    f = shape.filters
    hidden = prepare_matmul(
        shape, shape.taps, 2 * f, f, shape.planes,
        PLANES=shape.planes, plane_stride=shape.rows.length * 2 * f,
        DROPOUT=shape.settings.dropout > 0, SCALE=shape.settings.scale,
    )  # fmt: skip
    gate = prepare_matmul(shape, shape.taps, 2 * f, 2 * f, SAVE=save, IMAGE_BIAS=shape.image_bias)
    return prepare_expand(shape.rows, f, shape.skip_channels, shape.settings), hidden, gate


@functools.lru_cache(maxsize=4096)
def prepare_backward(
    shape: ResnetShape, needs: Needs, strides: tuple[Strides, ...], normed: bool
) -> tuple[Prepared, Prepared, Prepared, Prepared, tuple[tuple[int, ...], ...]]:
    """Launches of operands_kernel, hidden_gradient_kernel, parameter_gradient_kernel and
    last_gradients_kernel; and the sizes of the partial sums of the gradients of bias_out, bias_in,
    the weights of h and conv_out. normed: by weight norm."""
    f, rows, t = shape.filters, shape.rows, shape.taps.kh * shape.taps.kw
    hidden = prepare_matmul(
        shape, shape.taps.adjoint(), 2 * f, 2 * f,
        DROPOUT=shape.settings.dropout > 0, SCALE=shape.settings.scale,
    )  # fmt: skip
    ks = (2 * f * (t + shape.planes), 2 * f * t)
    divided = tilings.divide_gradients(rows.total, ks, f, shape.numbers, shape.capability)
    gate_blocks = cdiv(rows.length, BLOCK_P)
    hidden_blocks = cdiv(rows.pixels, hidden.arguments["G"].block_p)
    splits = divided[0].splits, divided[1].splits
    sums = (gate_blocks, 2 * f), (hidden_blocks, f)
    sizes = (*sums, (splits[0], ks[0], f), (splits[1], ks[1], 2 * f))
    expanded = prepare_expand(
        rows, f, shape.skip_channels, shape.settings, inputs=needs.parameters, backward=True
    )
    last = prepare_last(shape, needs, (*splits, hidden_blocks, gate_blocks), strides, normed)
    return expanded, hidden, prepare_parameters(shape, *divided), last, sizes


def prepare_matmul(
    shape: ResnetShape,
    taps: Taps,
    channels: int,
    columns: int,
    planes: int = 0,
    *,
    several: bool = False,
    **constants: Any,
) -> Prepared:
    """The launch of a matmul of pixels x `columns`. several: as `matmul_tiling` takes it;
    constants: constexprs of its epilogue."""
    rows, k = shape.rows, (taps.kh * taps.kw + planes) * channels
    tiling = tilings.matmul_tiling(
        rows.pixels, columns, k, shape.numbers, shape.capability, several=several
    )
    return Prepared(
        (cdiv(rows.pixels, tiling.block_p) * cdiv(columns, tiling.block_n),),
        steps=cdiv(k, tiling.block_k), size=rows.size, F=shape.filters,
        G=shape.geometry(taps, tiling), num_warps=tiling.num_warps, num_stages=tiling.num_stages,
        **constants,
    )  # fmt: skip


def prepare_parameters(
    shape: ResnetShape, hidden: tilings.DividedGradient, out: tilings.DividedGradient
) -> Prepared:
    """The launch of parameter_gradient_kernel."""
    f, programs = shape.filters, hidden.tiles * hidden.splits
    return Prepared(
        (programs + out.tiles * out.splits,),
        pitch=shape.rows.pitch, plane_stride=shape.rows.length * 2 * f,
        hidden_tiles=hidden.tiles, hidden_programs=programs, hidden_blocks=hidden.blocks,
        hidden_steps=hidden.steps, out_tiles=out.tiles, out_blocks=out.blocks,
        out_steps=out.steps, F=f, PLANES=shape.planes, PART=64 if 2 * f % 64 == 0 else 2 * f,
        HIDDEN=shape.geometry(shape.taps, hidden.tiling),
        OUT=shape.geometry(shape.taps, out.tiling),
        num_warps=out.tiling.num_warps, num_stages=out.tiling.num_stages,
    )  # fmt: skip


def prepare_last(
    shape: ResnetShape,
    needs: Needs,
    counts: tuple[int, int, int, int],
    strides: tuple[Strides, ...],
    normed: bool,
) -> Prepared:
    """The launch of last_gradients_kernel. counts: as `unpack_block` takes them."""
    f, planes, finish = shape.filters, shape.planes, needs.parameters
    skips = needs.skips and planes > 0
    filters = BLOCK_D.value
    first = cdiv(2 * f, filters) + cdiv(f, filters) * (2 if planes else 1)
    first = first if finish else 0
    matmul = prepare_matmul(shape, shape.taps.adjoint(), f, 2 * f, several=skips)
    geometry = matmul.arguments["G"]
    if not needs.x and not skips:
        # Only gradients of parameters. By four warps bfloat16 spills in Triton 3.9, by eight
        # float32 does in 3.6.
        matmul.arguments["num_warps"] = 8 if shape.dtype.itemsize == 2 else 4
    return Prepared(
        (first + matmul.programs * (needs.x + skips * planes),),
        programs=max(1, matmul.programs), first_program=first, X=needs.x, SKIPS=skips,
        UNPACK=finish, CHANNELS=(f, *shape.skip_channels, 0, 0)[:3], PLANES=planes,
        POINT=geometry._replace(taps=POINT), point_steps=cdiv(f, geometry.block_k),
        counts=counts if finish else None, strides=strides if finish else None,
        NORMED=normed and finish, **matmul.arguments,
    )  # fmt: skip
