"""The gated resnet of torch's convolutions, between kernels that expand and pad images and end it.

torch differentiates the rest: convolutions, weight norm, biases.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from ..kernels.geometry import Dropout, Operands, Taps, channels_last
from ..kernels.padded import gate_epilogue, pad_concat_elu
from .gated_resnet_operands import Settings
from .shifted_conv import taps_of

NO_DROPOUT = Dropout()


class _PadConcatElu(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, v: Tensor, taps: Taps, dropout: Dropout, seed: Tensor | None) -> Tensor:
        ctx.save_for_backward(v := channels_last(v), seed)
        ctx.settings = taps, dropout
        return pad_concat_elu(v, taps, dropout, seed)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        (v, seed), (taps, dropout) = ctx.saved_tensors, ctx.settings
        return pad_concat_elu(v, taps, dropout, seed, channels_last(grad)), None, None, None


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
    taps, point = taps_of(given.conv_in, settings.shift), Taps(1, 1, 0, 0)
    h = _convolve(given.x, taps, given.conv_in, given.gain_in, given.bias_in)
    if given.nin_skip is not None:
        a = torch.cat(given.skips, 1)
        h = h + _convolve(a, point, given.nin_skip, given.gain_nin, given.bias_nin)
    dropout = settings.numbers(), given.seed
    gates = _convolve(h, taps, given.conv_out, given.gain_out, given.bias_out, *dropout)
    if given.image_bias is not None:
        gates = gates + given.image_bias[:, :, None, None].to(gates.dtype)
    return _GateEpilogue.apply(given.x, gates)


def _convolve(
    x: Tensor,
    taps: Taps,
    v: Tensor,
    gain: Tensor | None,
    bias: Tensor | None,
    dropout: Dropout = NO_DROPOUT,
    seed: Tensor | None = None,
) -> Tensor:
    """The convolution of D concat_elu(x)."""
    if gain is not None:
        v = torch._weight_norm(v, gain.view(-1, 1, 1, 1), 0)
    v = v.to(x.dtype, memory_format=torch.channels_last)
    padded = _PadConcatElu.apply(x, taps, dropout, seed)
    return F.conv2d(padded, v, None if bias is None else bias.to(x.dtype))
