"""The gated residual block of PixelCNN++ (math.md section 1)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ._impl import Impl, require_reference
from .shifted_conv import Shift, concat_elu, shifted_conv2d_ref

Affine = tuple[Tensor, Tensor]  # weight (D, C, kh, kw) and bias (D,)


def gated_resnet(
    x: Tensor,
    conv_in: Affine,
    conv_out: Affine,
    skip: Tensor | None = None,
    nin_skip: Affine | None = None,
    *,
    shift: Shift,
    dropout: float = 0.0,
    impl: Impl = "auto",
) -> Tensor:
    """x + A * sigmoid(G), where (A, G) come from two convolutions with concat_elu before each.

        h = conv_in(concat_elu(x)) [+ nin_skip(concat_elu(skip))]
        (A, G) = split(conv_out(dropout(concat_elu(h))))

    x: (B, F, H, W). conv_in: weight (F, 2F, kh, kw), bias (F,). conv_out: weight (2F, 2F, kh, kw),
    bias (2F,). skip: (B, S, H, W) with nin_skip: weight (F, 2S, 1, 1), bias (F,); both or neither.
    dropout: the probability of an element of concat_elu(h) to be zeroed, drawn from torch's
    generator; 0 means none. Returns (B, F, H, W), in the autocast dtype under autocast.

    Raises ValueError for shapes that do not fit and NotImplementedError for an `impl` that this op
    does not have. Source: Salimans et al., PixelCNN++ (2017).
    """
    n_filters = conv_in[0].shape[0]
    if x.ndim != 4 or x.shape[1] != n_filters or conv_in[0].shape[1] != 2 * n_filters:
        raise ValueError(
            f"x must have shape (B, {n_filters}, H, W) and conv_in twice that many inputs, "
            f"got x {tuple(x.shape)} and conv_in {tuple(conv_in[0].shape)}"
        )
    if (skip is None) != (nin_skip is None):
        raise ValueError("skip and nin_skip must be given together")
    if skip is not None and (skip.shape[0], *skip.shape[2:]) != (x.shape[0], *x.shape[2:]):
        raise ValueError(
            f"skip must have x's batch, height and width, got {tuple(skip.shape)} "
            f"beside {tuple(x.shape)}"
        )
    require_reference("gated_resnet", impl)
    return gated_resnet_ref(x, conv_in, conv_out, skip, nin_skip, shift=shift, dropout=dropout)


def gated_resnet_ref(
    x: Tensor,
    conv_in: Affine,
    conv_out: Affine,
    skip: Tensor | None = None,
    nin_skip: Affine | None = None,
    *,
    shift: Shift,
    dropout: float = 0.0,
) -> Tensor:
    """The reference of `gated_resnet`, line for line the equation."""
    h = shifted_conv2d_ref(concat_elu(x), *conv_in, shift=shift)
    if skip is not None and nin_skip is not None:
        h = h + F.conv2d(concat_elu(skip), *nin_skip)
    h = F.dropout(concat_elu(h), dropout)
    a, g = torch.chunk(shifted_conv2d_ref(h, *conv_out, shift=shift), 2, dim=1)
    return x + a * torch.sigmoid(g)
