"""The gated resnet by torch's own convolutions, with Triton kernels before and after them.

torch differentiates the rest: convolutions, weight norm, biases.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from ..kernels.geometry import Operands, Settings, Taps, channels_last
from ..kernels.padded import gate_epilogue, pad_concat_elu
from .shifted_conv import fold_weight_norm


class _PadConcatElu(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, v: Tensor, taps: Taps, settings: Settings, seed: Tensor | None) -> Tensor:
        ctx.save_for_backward(v := channels_last(v), seed)
        ctx.rest = taps, settings
        return pad_concat_elu(v, taps, settings, seed)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        (v, seed), (taps, settings) = ctx.saved_tensors, ctx.rest
        return pad_concat_elu(v, taps, settings, seed, channels_last(grad)), None, None, None


class _GateEpilogue(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, gates: Tensor) -> Tensor:
        ctx.save_for_backward(gates := channels_last(gates))
        return gate_epilogue(channels_last(x), gates)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        (gates,) = ctx.saved_tensors
        return grad, gate_epilogue(channels_last(grad), gates, grad=True)


@torch.compiler.disable
def gated_resnet_cudnn(given: Operands, settings: Settings) -> Tensor:
    """y (B, F, H, W), channels_last."""

    def convolve(
        x: Tensor, part: str, v: Tensor, settings: Settings, seed: Tensor | None = None
    ) -> Tensor:
        """The convolution of D concat_elu(x)."""
        taps, dtype = Taps.of(v, settings.shift), x.dtype
        padded = _PadConcatElu.apply(x, taps, settings, seed)
        gain, bias = (getattr(given, f"{name}_{part}") for name in ("gain", "bias"))
        weight = fold_weight_norm(v, gain).to(dtype, memory_format=torch.channels_last)
        return F.conv2d(padded, weight, bias.to(dtype))

    whole = Settings(settings.shift)
    h = convolve(given.x, "in", given.conv_in, whole)
    if given.nin_skip is not None:
        h = h + convolve(torch.cat(given.skips, 1), "nin", given.nin_skip, whole)
    dropped = whole if given.seed is None else settings
    gates = convolve(h, "out", given.conv_out, dropped, given.seed)
    if given.image_bias is not None:
        gates = gates + given.image_bias[:, :, None, None].to(gates.dtype)
    return _GateEpilogue.apply(given.x, gates)
