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
from .expand import BLOCK_P, expand
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
    empty_channels_last,
    packed_sizes,
)
from .launch import arithmetic_of, launch
from .weights import pack, pad_to_three, unpacking


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
    def of(cls, operands: Operands, settings: Settings) -> Shape:
        x, taps = operands.x, Taps.of(operands.conv_in, settings.shift)
        rows = PaddedImages.of(x.shape, taps)
        return cls(rows, x.shape[1], operands.planes, taps, x.dtype, *arithmetic_of(x))

    def geometry(self, taps: Taps, tiling: tilings.MatmulTiling) -> Geometry:
        """The constants of a matmul with these taps."""
        wide = tl.float64 if self.dtype == torch.float64 else tl.float32
        precision: Literal["tf32", "ieee"] = "tf32" if self.numbers == "tf32" else "ieee"
        return Geometry(taps, self.rows.above, self.rows.before, wide, precision, *tiling[:4])

    def matmul(
        self, taps: Taps, channels: int, columns: int, planes: int = 0, *, several: bool = False
    ) -> tuple[int, dict[str, Any]]:
        """Programs of a matmul of pixels x `columns`, and arguments of its kernel.

        several: as `matmul_tiling` takes it.
        """
        rows, k = self.rows, (taps.kh * taps.kw + planes) * channels
        tiling = tilings.matmul_tiling(
            rows.pixels, columns, k, self.numbers, self.capability, several=several
        )
        return cdiv(rows.pixels, tiling.block_p) * cdiv(columns, tiling.block_n), {
            "steps": cdiv(k, tiling.block_k),
            "size": rows.size,
            "G": self.geometry(taps, tiling),
            "num_warps": tiling.num_warps,
            "num_stages": tiling.num_stages,
        }


def forward(
    operands: Operands,
    settings: Settings,
    packed: Tensor,
    y: Tensor,
    h: Tensor | None = None,
    gates: Tensor | None = None,
) -> None:
    """Write the packed weights and y; if a backward follows, also h (B, F, H, W), and A and G
    (B, 2F, H, W). All images are channels_last."""
    x, f = operands.x, operands.x.shape[1]
    shape = Shape.of(operands, settings)
    rows, save = shape.rows, gates is not None
    w_hidden, w_out, *adjoint = packed.split(packed_sizes(operands, save))
    pack(operands, w_hidden, w_out, *adjoint)
    h = empty_channels_last(x, f) if h is None else h
    e, kept = expand(operands, rows, settings, h)
    programs, arguments = shape.matmul(shape.taps, 2 * f, f, shape.planes)
    launch(
        hidden_kernel, (programs,), x.device,
        e_ptr=e, w_ptr=w_hidden, bias_ptr=operands.bias_in, nin_bias_ptr=operands.bias_nin,
        h_ptr=h, kept_ptr=kept, eh_ptr=e[-1], plane_stride=e.stride(0),
        F=f, PLANES=shape.planes, SCALE=settings.scale, **arguments,
    )  # fmt: skip
    programs, arguments = shape.matmul(shape.taps, 2 * f, 2 * f)
    launch(
        gate_kernel, (programs,), x.device,
        e_ptr=e[-1], w_ptr=w_out, bias_ptr=operands.bias_out, image_bias_ptr=operands.image_bias,
        x_ptr=x, y_ptr=y, gates_ptr=gates, F=f, **arguments,
    )  # fmt: skip


def backward(
    grad_y: Tensor,
    h: Tensor,
    gates: Tensor,
    packed: Tensor,
    operands: Operands,
    settings: Settings,
    grads: dict[str, Tensor],
) -> None:
    """Write the gradients `grads` by operand name: of all images, and of all parameters or of none.

    h, gates, packed: as `forward` wrote them, for a backward. Images are channels_last.
    """
    x, f = operands.x, operands.x.shape[1]
    shape = Shape.of(operands, settings)
    rows, parameters = shape.rows, "conv_in" in grads
    _, _, w_in_adjoint, w_out_adjoint, w_nin_adjoint = packed.split(packed_sizes(operands, True))
    programs, arguments = shape.matmul(shape.taps.adjoint(), 2 * f, 2 * f)
    d_gates, dh = rows.empty(x, 2 * f)[0], rows.empty(x, f)[0]
    out_sums = _sums(x, cdiv(rows.length, BLOCK_P), 2 * f)
    in_sums = _sums(x, cdiv(rows.pixels, arguments["G"].block_p), f)
    e, kept = expand(
        operands, rows, settings, h, inputs=parameters,
        d_gates_ptr=d_gates, dh_ptr=dh, gates_ptr=gates, dy_ptr=grad_y, sums_ptr=out_sums,
    )  # fmt: skip
    launch(
        hidden_gradient_kernel, (programs,), x.device,
        g_ptr=d_gates, w_ptr=w_out_adjoint, h_ptr=h, kept_ptr=kept, dh_ptr=dh, sums_ptr=in_sums,
        F=f, SCALE=settings.scale, **arguments,
    )  # fmt: skip
    first_program, unpacked = 0, None
    if parameters:
        parts = _weight_gradients(shape, e, dh, d_gates)
        first_program, unpacked = unpacking(parts, (in_sums, out_sums), operands, grads)
    if "image_bias" in grads:
        # The rows of an image are contiguous, and the padding between its pixels is zero.
        size = rows.batch, (rows.height + rows.above) * rows.pitch, 2 * f
        per_image = d_gates[: size[0] * size[1]].view(size)
        torch.sum(per_image, 1, dtype=grads["image_bias"].dtype, out=grads["image_bias"])
    images = [name for name in ("x", "skip", "skip_2") if name in grads]
    programs, arguments = shape.matmul(shape.taps.adjoint(), f, 2 * f, several=shape.planes > 0)
    geometry = arguments["G"]
    launch(
        last_gradients_kernel, (first_program + programs * (1 + shape.planes),), x.device,
        g_ptr=dh, w_ptr=w_in_adjoint, nin_ptr=w_nin_adjoint if operands.skips else w_in_adjoint,
        x=pad_to_three([x, *operands.skips]), dy_ptr=grad_y,
        dx=pad_to_three([grads[name] for name in images]), programs=max(1, programs),
        first_program=first_program, unpacked=unpacked,
        CHANNELS=operands.channels, NORMED=bool(operands.gains),
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
