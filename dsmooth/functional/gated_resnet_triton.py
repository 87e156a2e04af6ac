"""The Triton op of the gated resnet; `gated_resnet` checks arguments and chooses it."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor

from ..kernels.geometry import Taps, empty_channels_last, packed_size
from .dispatch import refuse_second_derivative
from .gated_resnet_operands import (
    FIELDS,
    GRADIENTS,
    SCHEMA,
    TENSORS,
    Operands,
    check_images,
    check_of_op,
)
from .registration import call, register_op
from .taps import taps_of

_WEIGHTS = ("conv_in", "conv_out", "nin_skip")
_BIASES = ("bias_in", "bias_out", "bias_nin")
_GAINS = ("gain_in", "gain_out", "gain_nin")
_SKIPS = ("skip", "skip_2")
_KINDS = {
    "x": ("x",),
    "skips": _SKIPS,
    "weights": _WEIGHTS,
    "biases": _BIASES,
    "gains": _GAINS,
    "image_bias": ("image_bias",),
}
# Each bias has one of its own, though nin_skip's has the same numbers as conv_in's.
_GRADIENTS = (*(name.removeprefix("grad_") for name in GRADIENTS), "bias_nin")
# Where that of each tensor among the forward's arguments is.
_PLACES = [_GRADIENTS.index(n) if n in _GRADIENTS else None for n in ("x", *TENSORS)]


@functools.cache
def _kernels() -> Any:
    """The kernels' module, which needs Triton; an import statement takes a microsecond."""
    from ..kernels import gated_resnet

    return gated_resnet


def gated_resnet_triton(
    x: Tensor,
    given: Operands,
    save: bool = True,
    keep: bool = False,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(y, h, packed, gates); all but y for the backward.

    y and h, the first convolution's output, are (B, F, H, W) channels_last. packed: the weights in
    x's dtype, in the order of the kernels; without `save` it has no elements. gates: A and G,
    (B, 2F, H, W) channels_last; without `keep` it has no elements, and they are computed again.
    """
    return call(forward_op, x, *given, save, keep and save)


def _forward(x: Tensor, *rest: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    *tensors, save, keep = rest
    given = Operands(*tensors)
    if x.numel() == 0:
        return _outputs(x, *rest)
    y, saved = _kernels().forward(
        x, given.skips(), *_lists(given), *_settings(given), save, keep, _image_bias(given),
    )  # fmt: skip
    gates = x.new_empty(0) if saved.gates is None else saved.gates
    return y, saved.h, saved.packed if save else x.new_empty(0), gates


def _outputs(x: Tensor, *rest: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    _check_forward(x, *rest)
    *tensors, save, keep = rest
    packed = x.new_empty(_packed_size(Operands(*tensors), True) if save else 0)
    gates = empty_channels_last(x, 2 * x.shape[1]) if keep else x.new_empty(0)
    return empty_channels_last(x, x.shape[1]), empty_channels_last(x, x.shape[1]), packed, gates


def _compute_gradients(
    grad_y: Tensor, x: Tensor, h: Tensor, packed: Tensor, gates: Tensor, *rest: Any
) -> tuple[Tensor, ...]:
    """The gradients _GRADIENTS; those that are not needed or have no operand have no elements."""
    *tensors, need_x, need_skips, need_parameters = rest
    given = Operands(*tensors)
    if x.numel() == 0:
        grads = _gradients(grad_y, x, h, packed, gates, *rest)
        return tuple(tensor.zero_() for tensor in grads)
    _check(x, grad_y, h, packed, gates, given)
    kernels = _kernels()
    saved = kernels.Saved(h, packed.contiguous(), gates if gates.numel() else None)
    found = kernels.backward(
        grad_y, x, saved, given.skips(), *_lists(given), *_settings(given),
        kernels.Needs(need_x, need_skips, need_parameters), _image_bias(given),
    )  # fmt: skip
    named = {name: g for kind in found for name, g in zip(_KINDS[kind], found[kind], strict=False)}
    return tuple([named[name] if name in named else x.new_empty(0) for name in _GRADIENTS])


def _gradients(
    grad_y: Tensor, x: Tensor, h: Tensor, packed: Tensor, gates: Tensor, *rest: Any
) -> tuple[Tensor, ...]:
    *tensors, need_x, need_skips, need_parameters = rest
    given = Operands(*tensors)
    _check(x, grad_y, h, packed, gates, given)
    operands = {"x": x, **given.tensors()}
    grads = []
    for name in _GRADIENTS:
        needed = need_x if name == "x" else need_skips if name in _SKIPS else need_parameters
        tensor = operands[name] if needed else None
        grads.append(x.new_empty(0) if tensor is None else _empty_like(name, tensor))
    return tuple(grads)


def _lists(given: Operands) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    """Weights, biases and gains as the kernels take them."""
    weights = given.conv_in, given.conv_out, given.nin_skip
    biases = given.bias_in, given.bias_out, given.bias_nin
    gains = given.gain_in, given.gain_out, given.gain_nin
    return (
        [weight for weight in weights if weight is not None],
        [bias.contiguous() for bias in biases if bias is not None],
        [gain.contiguous() for gain in gains if gain is not None],
    )


def _image_bias(given: Operands) -> Tensor | None:
    return None if given.image_bias is None else given.image_bias.contiguous()


def _settings(given: Operands) -> tuple[Taps, Any]:
    """The taps, and the dropout as the kernels take it."""
    keep_from, scale = given.dropout_numbers()
    dropout = _kernels().Dropout(given.seed, given.layer, keep_from, scale, given.first_image)
    return taps_of(given.conv_in, given.shift), dropout


def _check_forward(x: Tensor, *rest: Any) -> None:
    """Raises ValueError unless the forward can take these."""
    *tensors, _save, _keep = rest
    check_of_op(x, Operands(*tensors))


def _check(
    x: Tensor, grad_y: Tensor, h: Tensor, packed: Tensor, gates: Tensor, given: Operands
) -> None:
    """Raises ValueError unless the backward can take these."""
    check_of_op(x, given)
    check_images(x, grad_y=grad_y, h=h, **{"gates": gates} if gates.ndim > 1 else {})
    _check_packed(x, given, packed, True)


def _check_packed(x: Tensor, given: Operands, packed: Tensor, adjoint: bool) -> None:
    size = _packed_size(given, adjoint)
    if packed.shape != (size,) or packed.dtype != x.dtype or packed.device != x.device:
        raise ValueError(
            f"packed must have shape ({size},), {x.dtype}, on {x.device}, got "
            f"{tuple(packed.shape)}, {packed.dtype}, on {packed.device}"
        )


def _packed_size(given: Operands, adjoint: bool) -> int:
    channels = [skip.shape[1] for skip in given.skips()]
    return packed_size([given.conv_in], channels, adjoint)


def _empty_like(name: str, tensor: Tensor) -> Tensor:
    """For a gradient: channels_last for images and for kernels that are that alone."""
    last = FIELDS[name].layout == "ChannelsLast"
    if FIELDS[name].layout == "Kernel" and not tensor.is_contiguous():
        last = tensor.is_contiguous(memory_format=torch.channels_last)
    order = torch.channels_last if last else torch.contiguous_format
    return torch.empty(tensor.shape, dtype=tensor.dtype, device=tensor.device, memory_format=order)


def _save_for_backward(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    x, *tensors, shift, dropout, layer, first_image, _save, _keep = inputs
    _, h, packed, gates = output
    ctx.mark_non_differentiable(h, packed, gates)
    ctx.set_materialize_grads(False)
    ctx.settings = shift, dropout, layer, first_image
    ctx.save_for_backward(x, h, packed, gates, *tensors)


def _backward(ctx: Any, grad_y: Tensor | None, *_: Tensor | None) -> tuple[Tensor | None, ...]:
    x, h, packed, gates, *tensors = ctx.saved_tensors
    given = Operands(*tensors, *ctx.settings)
    if grad_y is None:
        return (None,) * len(ctx.needs_input_grad)
    need_x, *rest = ctx.needs_input_grad
    needs = need_x, any(rest[: len(_SKIPS)]), any(rest[len(_SKIPS) :])
    found = call(backward_op, grad_y, x, h, packed, gates, *given, *needs)
    grads = [
        found[place] if want and place is not None else None
        for place, want in zip(_PLACES, ctx.needs_input_grad, strict=False)
    ]
    return *grads, *(None,) * (len(ctx.needs_input_grad) - len(grads))


forward_op = register_op(
    "gated_resnet_triton",
    f"(Tensor x, {SCHEMA}, bool save, bool keep) -> (Tensor, Tensor, Tensor, Tensor)",
    _forward,
    _outputs,
    _backward,
    _save_for_backward,
    _check_forward,
)
backward_op = register_op(
    "gated_resnet_triton_backward",
    f"(Tensor grad_y, Tensor x, Tensor h, Tensor packed, Tensor gates, {SCHEMA}, bool need_x, "
    f"bool need_skips, bool need_parameters) -> ({', '.join(['Tensor'] * len(_GRADIENTS))})",
    _compute_gradients,
    _gradients,
    refuse_second_derivative("Triton gated resnet"),
)
