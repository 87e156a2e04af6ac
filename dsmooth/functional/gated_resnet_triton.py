"""The Triton op of the gated resnet; `gated_resnet` checks arguments and chooses it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..kernels.geometry import empty_channels_last
from .dispatch import refuse_second_derivative
from .gated_resnet_operands import (
    FIELDS,
    GRADIENTS,
    NO_IMAGE_BIAS,
    SCHEMA,
    Operands,
    check_images,
    check_of_op,
    input_gradients,
)
from .taps import taps_of

_WEIGHTS = ("conv_in", "conv_out", "nin_skip")
_BIASES = ("bias_in", "bias_out", "bias_nin")
_GAINS = ("gain_in", "gain_out", "gain_nin")
_SKIPS = ("skip", "skip_2")


def gated_resnet_triton(
    x: Tensor, given: Operands, save: bool = True
) -> tuple[Tensor, Tensor, Tensor]:
    """(y, h, packed); the last two for the backward.

    y and h, the first convolution's output, are (B, F, H, W) channels_last. packed: the weights in
    x's dtype, in the order of the kernels; without `save` it has no elements.
    """
    return forward_op(x, *given, save)


@torch.library.custom_op(
    "dsmooth::gated_resnet_triton",
    mutates_args=(),
    schema=f"(Tensor x, {SCHEMA}, bool save) -> (Tensor, Tensor, Tensor)",
)
def forward_op(x: Tensor, *rest: Any) -> tuple[Tensor, Tensor, Tensor]:
    from ..kernels import gated_resnet as kernels

    *tensors, save = rest
    given = Operands(*tensors)
    _check_operands(x, given)
    if x.numel() == 0:
        return _outputs(x, *rest)
    y, h, packed = kernels.forward(
        x, given.skips(), *_lists(given), given.seed, _settings(given), save
    )
    return y, h, packed if save else x.new_empty(0)


@forward_op.register_fake
def _outputs(x: Tensor, *rest: Any) -> tuple[Tensor, Tensor, Tensor]:
    *tensors, save = rest
    given = Operands(*tensors)
    _check_operands(x, given)
    packed = x.new_empty(_packed_size(x, given) if save else 0)
    return empty_channels_last(x, x.shape[1]), empty_channels_last(x, x.shape[1]), packed


@torch.library.custom_op(
    "dsmooth::gated_resnet_triton_backward",
    mutates_args=(),
    schema=f"(Tensor grad_y, Tensor x, Tensor h, Tensor packed, {SCHEMA}, bool need_x, "
    f"bool need_skips, bool need_parameters) -> ({', '.join(['Tensor'] * len(GRADIENTS))})",
)
def backward_op(
    grad_y: Tensor, x: Tensor, h: Tensor, packed: Tensor, *rest: Any
) -> tuple[Tensor, ...]:
    """The gradients GRADIENTS; those that are not needed or have no operand have no elements."""
    from ..kernels import gated_resnet as kernels

    *tensors, need_x, need_skips, need_parameters = rest
    given = Operands(*tensors)
    if x.numel() == 0:
        grads = _gradients(grad_y, x, h, packed, *rest)
        return tuple(tensor.zero_() for tensor in grads)
    _check(x, grad_y, h, packed, given)
    found = kernels.backward(
        grad_y, x, h, packed.contiguous(), given.skips(), *_lists(given), given.seed,
        _settings(given), kernels.Needs(need_x, need_skips, need_parameters),
    )  # fmt: skip
    named: dict[str, Tensor] = {}
    for names, kind in (
        (("x",), "x"), (_SKIPS, "skips"), (_WEIGHTS, "weights"), (_BIASES, "biases"),
        (_GAINS, "gains"),
    ):  # fmt: skip
        named |= dict(zip(names, found.get(kind, ()), strict=False))
    named = {f"grad_{name}": tensor for name, tensor in named.items()}
    return tuple(named[name] if name in named else x.new_empty(0) for name in GRADIENTS)


@backward_op.register_fake
def _gradients(
    grad_y: Tensor, x: Tensor, h: Tensor, packed: Tensor, *rest: Any
) -> tuple[Tensor, ...]:
    *tensors, need_x, need_skips, need_parameters = rest
    given = Operands(*tensors)
    _check(x, grad_y, h, packed, given)
    operands = {"x": x, **given.tensors()}
    grads = []
    for gradient in GRADIENTS:
        name = gradient.removeprefix("grad_")
        needed = need_x if name == "x" else need_skips if name in _SKIPS else need_parameters
        tensor = operands[name] if needed else None
        grads.append(x.new_empty(0) if tensor is None else _empty_like(name, tensor))
    return tuple(grads)


def _check_operands(x: Tensor, given: Operands) -> None:
    """Raises ValueError unless the kernels can take these."""
    check_of_op(x, given)
    if given.image_bias is not None:
        raise ValueError(f"the Triton gated resnet cannot run: {NO_IMAGE_BIAS}")


def _lists(given: Operands) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    """Weights, biases and gains as the kernels take them."""
    tensors = given.tensors()
    weights, biases, gains = (
        [tensors[name] for name in names if tensors[name] is not None]
        for names in (_WEIGHTS, _BIASES, _GAINS)
    )
    return weights, [b.contiguous() for b in biases], [g.contiguous() for g in gains]


def _settings(given: Operands) -> Any:
    from ..kernels.gated_resnet import Settings

    taps = taps_of(given.conv_in, given.shift)
    return Settings(taps, given.dropout_numbers(), given.layer, given.first_image)


def _check(x: Tensor, grad_y: Tensor, h: Tensor, packed: Tensor, given: Operands) -> None:
    """Raises ValueError unless the backward can take these."""
    _check_operands(x, given)
    check_images(x, grad_y=grad_y, h=h)
    size = _packed_size(x, given)
    if packed.shape != (size,) or packed.dtype != x.dtype or packed.device != x.device:
        raise ValueError(
            f"packed must have shape ({size},), {x.dtype}, on {x.device}, got "
            f"{tuple(packed.shape)}, {packed.dtype}, on {packed.device}"
        )


def _packed_size(x: Tensor, given: Operands) -> int:
    from ..kernels.geometry import packed_sizes, planes_of

    f = x.shape[1]
    planes = planes_of([skip.shape[1] for skip in given.skips()], f)
    return sum(packed_sizes(f, taps_of(given.conv_in, given.shift), planes, True))


def _empty_like(name: str, tensor: Tensor) -> Tensor:
    """For a gradient: channels_last for images and for kernels that are that alone."""
    last = FIELDS[name].layout == "ChannelsLast"
    if FIELDS[name].layout == "Kernel" and not tensor.is_contiguous():
        last = tensor.is_contiguous(memory_format=torch.channels_last)
    order = torch.channels_last if last else torch.contiguous_format
    return torch.empty(tensor.shape, dtype=tensor.dtype, device=tensor.device, memory_format=order)


def _save_for_backward(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    x, *tensors, shift, dropout, layer, first_image, _save = inputs
    _, h, packed = output
    ctx.mark_non_differentiable(h, packed)
    ctx.set_materialize_grads(False)
    ctx.settings = shift, dropout, layer, first_image
    ctx.save_for_backward(x, h, packed, *tensors)


def _backward(ctx: Any, grad_y: Tensor | None, *_: Tensor | None) -> tuple[Tensor | None, ...]:
    x, h, packed, *tensors = ctx.saved_tensors
    given = Operands(*tensors, *ctx.settings)
    if grad_y is None:
        return None, *(None for _ in given), None
    need_x, *rest = ctx.needs_input_grad
    needs = need_x, any(rest[: len(_SKIPS)]), any(rest[len(_SKIPS) :])
    grads = input_gradients(given, backward_op(grad_y, x, h, packed, *given, *needs))
    wanted = ctx.needs_input_grad[:-1]
    return *(g if want else None for g, want in zip(grads, wanted, strict=True)), None


forward_op.register_autograd(_backward, setup_context=_save_for_backward)
backward_op.register_autograd(refuse_second_derivative("Triton gated resnet"))
