"""Weight-normed layers and the gated resnet as modules."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TypeVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..functional.dispatch import without_autocast
from ..functional.gated_resnet import apply_gates, drop, gated_resnet_inner
from ..functional.gated_resnet_operands import GatedResnetCall, operands_of
from ..functional.shifted_conv import (
    Shift,
    concat_elu_inner,
    fold_weight_norm,
    shifted_conv2d_inner,
    shifted_conv_transpose2d_inner,
)
from ..philox import draw_seed

Skip = Tensor | tuple[Tensor, ...] | None
Layer = TypeVar("Layer", bound=nn.Module)


def listed(layers: Iterable[Layer]) -> Sequence[Layer]:
    """A ModuleList with a typed interface: torch's does not declare the type of its elements."""
    return cast("Sequence[Layer]", nn.ModuleList(layers))


class WeightNormConv(nn.Module):
    """A shifted convolution with weight norm per output filter: w = g * v / ||v||.

    weight_v: (D, C, kh, kw), or (C, D, kh, kw) when transposed, with stride 2.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: tuple[int, int],
        *,
        shift: Shift = "none",
        stride: int = 1,
        transposed: bool = False,
    ) -> None:
        super().__init__()
        self.shift: Shift = shift
        self.stride = stride
        self.transposed = transposed
        self.filter_dims = (0, 2, 3) if transposed else (1, 2, 3)
        channels = (in_channels, out_channels) if transposed else (out_channels, in_channels)
        v = torch.empty(*channels, *kernel_size)
        fan_in = in_channels * kernel_size[0] * kernel_size[1]
        g = torch.empty(out_channels)
        if not v.is_meta:  # a meta tensor has no values, and torch would import its compiler
            nn.init.normal_(v, std=fan_in**-0.5)
            g = self.norm(v)
        self.weight_v = nn.Parameter(v)
        self.weight_g = nn.Parameter(g)
        self.bias = nn.Parameter(torch.zeros(out_channels))

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, D, H/stride, W/stride), or (B, D, 2H, 2W) when transposed."""
        if self.transposed:
            return shifted_conv_transpose2d_inner(x, *self.affine(), self.shift)
        return shifted_conv2d_inner(x, *self.affine(), self.shift, self.stride)

    def norm(self, v: Tensor) -> Tensor:
        """|v| of each output filter."""
        return torch.linalg.vector_norm(v, dim=self.filter_dims)

    def affine(self) -> tuple[Tensor, Tensor]:
        """(weight in the shape of weight_v, bias), as the functional ops take them."""
        return fold_weight_norm(self.weight_v, self.weight_g, self.filter_dims), self.bias

    def initialize(self, x: Tensor, scale: float = 1.0) -> None:
        """Set g and b so that the output for `x` has mean 0 and standard deviation `scale`."""
        with torch.no_grad():
            output = self.forward(x).float()
            variance, mean = torch.var_mean(output, dim=(0, 2, 3), correction=0)
            # A filter that is constant on the batch has no scale to set, so its gain is kept.
            gain = torch.where(variance > 1e-10, scale * variance.clamp(min=1e-10).rsqrt(), 1.0)
            self.weight_g.mul_(gain)
            self.bias.sub_(mean).mul_(gain)


class Conv1x1(WeightNormConv):
    """A 1x1 convolution as a matrix product, which takes less than half the time on a CPU.

    On CUDA its operands are rounded to TF32 only if `torch.set_float32_matmul_precision` allows it.
    """

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, D, H, W)."""
        weight, bias = self.affine()
        matrix = weight.flatten(1).expand(x.shape[0], -1, -1)
        return torch.baddbmm(bias[:, None], matrix, x.flatten(2)).unflatten(2, x.shape[2:])


def change_of(layer: nn.Module) -> str | None:
    """Why a layer may compute something other than its class in this package does, or None.

    Hooks of a backward pass count where gradients are computed.
    """
    kind = type(layer)
    # A subclass of another module may compute anything.
    if kind is not nn.ModuleList and kind.__module__.rpartition(".")[0] != __package__:
        return f"is a {kind.__name__}, not the library's own"
    if layer._forward_hooks or layer._forward_pre_hooks:
        return "has forward hooks"
    if torch.is_grad_enabled() and (layer._backward_hooks or layer._backward_pre_hooks):
        return "has backward hooks"
    own = layer.__dict__
    for base in kind.__mro__:
        if base is nn.Module:
            break
        for name in base.__dict__:  # few, where `own` has all attributes
            if name in own and callable(getattr(kind, name)):
                return f"has a method {name} of its own"
    return None


class GatedResnet(nn.Module):
    """The module of `functional.gated_resnet`.

    Where one of its convolutions was replaced or has hooks, all of them are called instead, which
    takes longer.

    skip_channels: channels of the skip input, 0 without one. condition_size: D of the vector that
    each image is conditioned on, 0 without one; its projection is initialized to zero. Attribute:
    index, unique for each gated resnet of a network, is the argument `layer` of the function.
    """

    def __init__(
        self,
        n_filters: int,
        kernel_size: tuple[int, int],
        *,
        shift: Shift,
        skip_channels: int = 0,
        condition_size: int = 0,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.shift: Shift = shift
        self.dropout = dropout
        self.index = 0
        f, size = n_filters, condition_size
        self.conv_in = WeightNormConv(2 * f, f, kernel_size, shift=shift)
        self.nin_skip = WeightNormConv(2 * skip_channels, f, (1, 1)) if skip_channels else None
        self.conv_out = WeightNormConv(2 * f, 2 * f, kernel_size, shift=shift)
        self.condition_weight = nn.Parameter(torch.zeros(2 * f, size)) if size else None

    def forward(
        self,
        x: Tensor,
        skip: Skip = None,
        *,
        condition: Tensor | None = None,
        seed: Tensor | None = None,
        first_image: int = 0,
    ) -> Tensor:
        """(B, F, H, W), skip (B, skip_channels, H, W) or its parts -> (B, F, H, W).

        condition: (B, D) in the dtype of the weights. seed, first_image: see the function.
        """
        convs = [self.conv_in, self.conv_out] + ([self.nin_skip] if self.nin_skip else [])
        image_bias = None
        if self.condition_weight is not None and condition is not None:
            # In the dtype of the weights even under autocast, like the bias to which it is added.
            with without_autocast(condition.device.type):
                image_bias = F.linear(condition, self.condition_weight)
        call, has_dropout = GatedResnetCall(self.shift), self.training and self.dropout > 0
        if has_dropout:
            call = GatedResnetCall(self.shift, self.dropout, self.index, first_image)
        seed = (draw_seed(x.device) if seed is None else seed) if has_dropout else None
        if any(change_of(conv) for conv in convs):
            h = concat_elu_inner(self._hidden(x, skip))
            h = h if seed is None else drop(h, call, seed)
            return apply_gates(x, self.conv_out(h), image_bias)
        conv_in, conv_out, *nin = [(conv.weight_v, conv.bias) for conv in convs]
        gains = tuple(conv.weight_g for conv in convs)
        skips = () if skip is None else skip if isinstance(skip, tuple) else (skip,)
        weights = conv_in, conv_out, skips, nin[0] if nin else None, gains
        return gated_resnet_inner(operands_of(x, *weights, image_bias, seed), call)

    def _hidden(self, x: Tensor, skip: Skip) -> Tensor:
        h: Tensor = self.conv_in(concat_elu_inner(x))
        if self.nin_skip is not None and skip is not None:
            skip = torch.cat(skip, dim=1) if isinstance(skip, tuple) else skip
            h = h + self.nin_skip(concat_elu_inner(skip))
        return h

    def initialize(self, x: Tensor, skip: Skip = None) -> None:
        """Data-dependent init; without the condition, the second convolution's output has scale
        0.1."""
        self.conv_in.initialize(concat_elu_inner(x))
        if self.nin_skip is not None and skip is not None:
            whole = torch.cat(skip, dim=1) if isinstance(skip, tuple) else skip
            self.nin_skip.initialize(concat_elu_inner(whole))
        self.conv_out.initialize(concat_elu_inner(self._hidden(x, skip)), scale=0.1)
