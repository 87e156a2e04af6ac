"""The gated resnet: matmuls of rows (`matmul.py`) and their epilogues.

    h = conv_in(E(x)) + nin(E(a)) + biases           hidden_kernel
    y = x + A sigmoid(G), (A, G) = conv_out(D E(h))  gate_kernel

with E = concat_elu and dropout D. `expand` writes E(x), and hidden_kernel writes D E(h). The
backward recomputes E, and the epilogue of each data gradient applies the slopes of elu. The forward
saves h, A and G, and the packed weights.
"""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import torch
import triton.language as tl
from torch import Tensor

from . import tilings
from .expand import blocks_of, expand
from .gated_resnet_kernels import (
    gate_kernel,
    hidden_gradient_kernel,
    hidden_kernel,
    last_gradients_kernel,
    parameter_gradient_kernel,
)
from .geometry import (
    POINT,
    Dropout,
    Geometry,
    PaddedImages,
    Taps,
    Tensors,
    cdiv,
    packed_sizes,
)
from .launch import arithmetic_of, launch
from .weights import pack, unpacking


class Saved(NamedTuple):
    """What the forward keeps for the backward."""

    h: Tensor  # (B, F, H, W), channels_last
    gates: Tensor  # A and G, (B, 2F, H, W), channels_last
    packed: Tensor  # the packed weights


class Shape(NamedTuple):
    """What determines the tilings of a gated resnet's matmuls."""

    rows: PaddedImages
    filters: int
    planes: int
    taps: Taps
    dtype: torch.dtype
    numbers: tilings.Format
    capability: int

    @classmethod
    def of(cls, tensors: Tensors, taps: Taps) -> Shape:
        x = tensors.images[0]
        rows = PaddedImages.of(x.shape, taps)
        return cls(rows, x.shape[1], tensors.planes, taps, x.dtype, *arithmetic_of(x))

    def geometry(self, taps: Taps, tiling: tilings.MatmulTiling) -> Geometry:
        """The constants of a matmul with these taps."""
        wide = tl.float64 if self.dtype == torch.float64 else tl.float32
        precision: Literal["tf32", "ieee"] = "tf32" if self.numbers == "tf32" else "ieee"
        return Geometry(taps, self.rows.above, self.rows.before, wide, precision, *tiling[:4])

    def matmul(
        self, taps: Taps, channels: int, columns: int, planes: int = 0
    ) -> tuple[int, dict[str, Any]]:
        """Programs of a matmul of pixels x `columns`, and arguments of its kernel."""
        rows, k = self.rows, (taps.kh * taps.kw + planes) * channels
        tiling = tilings.matmul_tiling(rows.pixels, columns, self.numbers, self.capability)
        return cdiv(rows.pixels, tiling.block_p) * cdiv(columns, tiling.block_n), {
            "steps": cdiv(k, tiling.block_k),
            "size": rows.size,
            "G": self.geometry(taps, tiling),
            "num_warps": tiling.num_warps,
            "num_stages": tiling.num_stages,
        }


def forward(tensors: Tensors, taps: Taps, dropout: Dropout, y: Tensor, saved: Saved | None) -> None:
    """Write y (B, F, H, W), channels_last, and what is saved if a backward follows."""
    x, f = tensors.images[0], tensors.channels[0]
    shape = Shape.of(tensors, taps)
    sizes = packed_sizes(tensors, adjoint=saved is not None)
    h = torch.empty_like(x) if saved is None else saved.h
    gates = None if saved is None else saved.gates
    packed = x.new_empty(sum(sizes)) if saved is None else saved.packed
    w_hidden, w_out, *adjoint = packed.split(sizes)
    pack(tensors, w_hidden, w_out, *adjoint)
    e, kept = expand(tensors, shape.rows, h, dropout)
    conv_in, conv_out, *nin = tensors.weights
    programs, arguments = shape.matmul(shape.taps, 2 * f, f, shape.planes)
    launch(
        hidden_kernel, (programs,), x.device,
        e_ptr=e, w_ptr=w_hidden, bias_ptr=conv_in.bias, nin_bias_ptr=nin[0].bias if nin else None,
        h_ptr=h, kept_ptr=kept, eh_ptr=e[-1], plane_stride=e.stride(0),
        F=f, PLANES=shape.planes, SCALE=dropout.scale, **arguments,
    )  # fmt: skip
    programs, arguments = shape.matmul(shape.taps, 2 * f, 2 * f)
    launch(
        gate_kernel, (programs,), x.device,
        e_ptr=e[-1], w_ptr=w_out, bias_ptr=conv_out.bias,
        image_bias_ptr=tensors.image_bias, x_ptr=x, y_ptr=y, gates_ptr=gates,
        F=f, **arguments,
    )  # fmt: skip


def backward(
    tensors: Tensors, taps: Taps, dropout: Dropout, saved: Saved, grad_y: Tensor, grads: Tensors
) -> None:
    """Write the gradients: of all images, and of all parameters or of none.

    grad_y: of y, channels_last.
    """
    x, f = tensors.images[0], tensors.channels[0]
    shape = Shape.of(tensors, taps)
    rows, (h, gates, packed) = shape.rows, saved
    sizes = packed_sizes(tensors, adjoint=True)
    _, _, w_in_adjoint, w_out_adjoint, w_nin_adjoint = packed.split(sizes)
    programs, arguments = shape.matmul(shape.taps.adjoint(), 2 * f, 2 * f)
    d_gates, dh = rows.empty(x, 2 * f)[0], rows.empty(x, f)[0]
    out_sums = _sums(x, blocks_of(rows), 2 * f)
    in_sums = _sums(x, cdiv(rows.pixels, arguments["G"].block_p), f)
    e, kept = expand(
        tensors, rows, h, dropout, inputs=bool(grads.weights), d_gates_ptr=d_gates, dh_ptr=dh,
        gates_ptr=gates, dy_ptr=grad_y, sums_ptr=out_sums,
    )  # fmt: skip
    launch(
        hidden_gradient_kernel, (programs,), x.device,
        g_ptr=d_gates, w_ptr=w_out_adjoint, h_ptr=h, kept_ptr=kept, dh_ptr=dh, sums_ptr=in_sums,
        F=f, SCALE=dropout.scale, **arguments,
    )  # fmt: skip
    first_program, unpacked = 0, None
    if grads.weights:
        parts = _weight_gradients(shape, e, dh, d_gates)
        first_program, unpacked = unpacking(parts, (in_sums, out_sums), tensors, grads)
    if (out := grads.image_bias) is not None:
        # The rows of an image are contiguous, and the padding between its pixels is zero.
        size = rows.batch, (rows.height + rows.above) * rows.pitch, 2 * f
        per_image = d_gates[: size[0] * size[1]].view(size)
        torch.sum(per_image, 1, dtype=out.dtype, out=out)
    programs, arguments = shape.matmul(shape.taps.adjoint(), f, 2 * f)
    geometry = arguments["G"]
    launch(
        last_gradients_kernel, (first_program + programs * (1 + shape.planes),), x.device,
        g_ptr=dh, w_ptr=w_in_adjoint, nin_ptr=w_nin_adjoint if shape.planes else w_in_adjoint,
        x=(*tensors.images, x, x)[:3], dy_ptr=grad_y, dx=(*grads.images, x, x)[:3],
        programs=max(1, programs), first_program=first_program, unpacked=unpacked,
        CHANNELS=(*tensors.channels, 0, 0)[:3],
        POINT=geometry._replace(taps=POINT), point_steps=cdiv(f, geometry.block_k), **arguments,
    )  # fmt: skip


def _sums(x: Tensor, *size: int) -> Tensor:
    """Uninitialised sums of images like x."""
    wide = torch.float64 if x.dtype == torch.float64 else torch.float32
    return torch.empty(size, dtype=wide, device=x.device)


def _weight_gradients(
    shape: Shape, e: Tensor, dh: Tensor, d_gates: Tensor
) -> tuple[Tensor, Tensor]:
    """Partial sums of the gradients of the packed weights of h and of conv_out.

    Both are divided into the same splits of the rows, as many as make one wave of programs.
    """
    f, rows, taps = shape.filters, shape.rows, shape.taps
    ks = 2 * f * (taps.kh * taps.kw + shape.planes), 2 * f * taps.kh * taps.kw
    hidden, out = (
        tilings.gradient_tiling(k, columns, shape.numbers, shape.capability)
        for k, columns in zip(ks, (f, 2 * f), strict=True)
    )
    hidden_tiles = cdiv(ks[0], hidden.block_k) * cdiv(f, hidden.block_n)
    out_tiles = cdiv(ks[1], out.block_k) * cdiv(2 * f, out.block_n)
    blocks = rows.total // out.block_p
    steps = cdiv(blocks, max(1, tilings.PROCESSORS // (hidden_tiles + out_tiles)))
    splits = cdiv(blocks, steps)
    parts = _sums(e, splits, ks[0], f), _sums(e, splits, ks[1], 2 * f)
    launch(
        parameter_gradient_kernel, ((hidden_tiles + out_tiles) * splits,), e.device,
        e_ptr=e, eh_ptr=e[-1], dh_ptr=dh, d_gates_ptr=d_gates,
        hidden_ptr=parts[0], out_ptr=parts[1], pitch=rows.pitch, plane_stride=e.stride(0),
        hidden_tiles=hidden_tiles, hidden_programs=hidden_tiles * splits, out_tiles=out_tiles,
        blocks=blocks, steps=steps, F=f, PLANES=shape.planes,
        PART=64 if 2 * f % 64 == 0 else 2 * f,
        HIDDEN=shape.geometry(taps, hidden), OUT=shape.geometry(taps, out),
        num_warps=max(hidden.num_warps, out.num_warps), num_stages=out.num_stages,
    )  # fmt: skip
    return parts
