"""The Triton op of the gated block; `gated_resnet` checks arguments and chooses it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .dispatch import empty_channels_last, refuse_second_derivative
from .dropout import keep_from
from .taps import taps_of


def _numbers(dropout: float) -> tuple[int, float]:
    """The least word >> 9 that is kept, and what a kept element is multiplied by."""
    return keep_from(dropout), 1 / (1 - dropout)


def _dense_vectors(tensors: list[Tensor]) -> list[Tensor]:
    """Biases and gains in adjacent numbers; of weights the kernels take the strides."""
    return [tensor.contiguous() if tensor.ndim == 1 else tensor for tensor in tensors]


def _empty_weight(weight: Tensor) -> Tensor:
    """For the gradient of a weight: channels_last if the weight is that alone, else contiguous."""
    last = weight.ndim == 4 and not weight.is_contiguous()
    last = last and weight.is_contiguous(memory_format=torch.channels_last)
    layout = torch.channels_last if last else torch.contiguous_format
    return torch.empty(weight.shape, dtype=weight.dtype, device=weight.device, memory_format=layout)


@torch.library.custom_op("dsmooth::gated_resnet_triton", mutates_args=())
def gated_resnet_triton(
    x: Tensor,
    skips: list[Tensor],
    weights: list[Tensor],
    gains: list[Tensor],
    seed: Tensor | None,
    shift: str,
    dropout: float,
    layer: int,
) -> tuple[Tensor, Tensor]:
    """(y, h), (B, F, H, W) channels_last; h, the first convolution's output, for the backward.

    weights: conv_in, its bias, conv_out, its bias and, with skips, nin_skip and its bias; gains:
    none, or those of the convolutions; float64 for float64 x, else float32. seed: None for no
    dropout.
    """
    from ..kernels import gated_resnet as kernels

    if x.numel() == 0:
        return _outputs(x, skips, weights, gains, seed, shift, dropout, layer)
    weights, gains = _dense_vectors(weights), _dense_vectors(gains)
    taps = kernels.Taps(*taps_of(weights[0], shift))
    return kernels.forward(x, skips, weights, gains, seed, taps, _numbers(dropout), layer)


@gated_resnet_triton.register_fake
def _outputs(
    x: Tensor,
    skips: list[Tensor],
    weights: list[Tensor],
    gains: list[Tensor],
    seed: Tensor | None,
    shift: str,
    dropout: float,
    layer: int,
) -> tuple[Tensor, Tensor]:
    return empty_channels_last(x, x.shape[1]), empty_channels_last(x, x.shape[1])


@torch.library.custom_op("dsmooth::gated_resnet_triton_backward", mutates_args=())
def gated_resnet_triton_backward(
    grad_y: Tensor,
    x: Tensor,
    h: Tensor,
    skips: list[Tensor],
    weights: list[Tensor],
    gains: list[Tensor],
    seed: Tensor | None,
    shift: str,
    dropout: float,
    layer: int,
) -> list[Tensor]:
    """Gradients of x, the first five weights (nin_skip's bias has conv_in's), gains and skips."""
    from ..kernels import gated_resnet as kernels

    if x.numel() == 0:
        like = _gradients(grad_y, x, h, skips, weights, gains, seed, shift, dropout, layer)
        return [tensor.zero_() for tensor in like]
    weights, gains = _dense_vectors(weights), _dense_vectors(gains)
    taps = kernels.Taps(*taps_of(weights[0], shift))
    return kernels.backward(
        grad_y, x, h, skips, weights, gains, seed, taps, _numbers(dropout), layer
    )


@gated_resnet_triton_backward.register_fake
def _gradients(
    grad_y: Tensor,
    x: Tensor,
    h: Tensor,
    skips: list[Tensor],
    weights: list[Tensor],
    gains: list[Tensor],
    seed: Tensor | None,
    shift: str,
    dropout: float,
    layer: int,
) -> list[Tensor]:
    return [
        empty_channels_last(x, x.shape[1]),
        *(_empty_weight(weight) for weight in weights[:5]),
        *(gain.new_empty(gain.shape) for gain in gains),
        *(empty_channels_last(skip, skip.shape[1]) for skip in skips),
    ]


def _save_for_backward(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    x, skips, weights, gains, seed, *ctx.settings = inputs
    _, h = output
    ctx.mark_non_differentiable(h)
    ctx.set_materialize_grads(False)
    ctx.counts = [len(skips), len(weights), len(gains)]
    ctx.save_for_backward(x, h, *skips, *weights, *gains, seed)


def _backward(ctx: Any, grad_y: Tensor | None, _grad_h: Tensor | None) -> tuple[Any, ...]:
    n_skips, n_weights, n_gains = ctx.counts
    rest: tuple[None, ...] = (None,) * 4
    if grad_y is None:
        return None, [None] * n_skips, [None] * n_weights, [None] * n_gains, *rest
    x, h, *lists, seed = ctx.saved_tensors
    skips, lists = lists[:n_skips], lists[n_skips:]
    weights, gains = lists[:n_weights], lists[n_weights:]
    grad_x, *grads = gated_resnet_triton_backward(
        grad_y, x, h, skips, weights, gains, seed, *ctx.settings
    )
    first_gain = min(n_weights, 5)
    first_skip = first_gain + n_gains
    grad_weights = grads[:first_gain]
    if n_weights == 6:
        grad_weights.append(grad_weights[1].clone())
    return grad_x, grads[first_skip:], grad_weights, grads[first_gain:first_skip], *rest


gated_resnet_triton.register_autograd(_backward, setup_context=_save_for_backward)
gated_resnet_triton_backward.register_autograd(refuse_second_derivative("Triton gated block"))
