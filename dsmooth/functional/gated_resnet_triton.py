"""The Triton op of the gated resnet; `gated_resnet` checks arguments and chooses it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..kernels.geometry import Taps, empty_channels_last
from .dispatch import refuse_second_derivative
from .gated_resnet_operands import (
    FIELDS,
    GRADIENTS,
    SCHEMA,
    Operands,
    check_images,
    check_of_op,
    input_gradients,
)
from .registration import call, register_op
from .taps import taps_of

_WEIGHTS = ("conv_in", "conv_out", "nin_skip")
_BIASES = ("bias_in", "bias_out", "bias_nin")
_GAINS = ("gain_in", "gain_out", "gain_nin")
_SKIPS = ("skip", "skip_2")
# Each bias has one of its own, though nin_skip's has the same numbers as conv_in's.
_GRADIENTS = (*GRADIENTS, "grad_bias_nin")


def gated_resnet_triton(
    x: Tensor,
    given: Operands,
    save: bool = True,
    keep: bool = False,
    packed: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(y, h, packed, gates); all but y for the backward.

    y and h, the first convolution's output, are (B, F, H, W) channels_last. packed: the weights in
    x's dtype, in the order of the kernels; if they are given, or without `save`, it has no
    elements. gates: A and G, (B, 2F, H, W) channels_last; without `keep` it has no elements, and
    they are computed again.
    """
    if packed is not None:
        _check_given(x, given, packed, save)
    return call(forward_op, x, *given, packed, save, keep and save)


def _forward(x: Tensor, *rest: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    from ..kernels import gated_resnet as kernels

    *tensors, packed, save, keep = rest
    given = Operands(*tensors)
    if x.numel() == 0:
        return _outputs(x, *rest)
    y, saved = kernels.forward(
        x, given.skips(), *_lists(given), *_settings(given), save, keep, _image_bias(given),
        None if packed is None else packed.contiguous(),
    )  # fmt: skip
    gates = x.new_empty(0) if saved.gates is None else saved.gates
    returned = saved.packed if save and packed is None else x.new_empty(0)
    return y, saved.h, returned, gates


def _outputs(x: Tensor, *rest: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    _check_forward(x, *rest)
    *tensors, packed, save, keep = rest
    given = Operands(*tensors)
    packed = x.new_empty(_packed_size(x, given, True) if save and packed is None else 0)
    gates = empty_channels_last(x, 2 * x.shape[1]) if keep else x.new_empty(0)
    return empty_channels_last(x, x.shape[1]), empty_channels_last(x, x.shape[1]), packed, gates


def _compute_gradients(
    grad_y: Tensor, x: Tensor, h: Tensor, packed: Tensor, gates: Tensor, *rest: Any
) -> tuple[Tensor, ...]:
    """The gradients _GRADIENTS; those that are not needed or have no operand have no elements."""
    from ..kernels import gated_resnet as kernels

    *tensors, need_x, need_skips, need_parameters = rest
    given = Operands(*tensors)
    if x.numel() == 0:
        grads = _gradients(grad_y, x, h, packed, gates, *rest)
        return tuple(tensor.zero_() for tensor in grads)
    _check(x, grad_y, h, packed, gates, given)
    saved = kernels.Saved(h, packed.contiguous(), gates if gates.numel() else None)
    found = kernels.backward(
        grad_y, x, saved, given.skips(), *_lists(given), *_settings(given),
        kernels.Needs(need_x, need_skips, need_parameters), _image_bias(given),
    )  # fmt: skip
    named: dict[str, Tensor] = {}
    for names, kind in (
        (("x",), "x"), (_SKIPS, "skips"), (_WEIGHTS, "weights"), (_BIASES, "biases"),
        (_GAINS, "gains"), (("image_bias",), "image_bias"),
    ):  # fmt: skip
        named |= dict(zip(names, found.get(kind, ()), strict=False))
    named = {f"grad_{name}": tensor for name, tensor in named.items()}
    return tuple(named[name] if name in named else x.new_empty(0) for name in _GRADIENTS)


def _gradients(
    grad_y: Tensor, x: Tensor, h: Tensor, packed: Tensor, gates: Tensor, *rest: Any
) -> tuple[Tensor, ...]:
    *tensors, need_x, need_skips, need_parameters = rest
    given = Operands(*tensors)
    _check(x, grad_y, h, packed, gates, given)
    operands = {"x": x, **given.tensors()}
    grads = []
    for gradient in _GRADIENTS:
        name = gradient.removeprefix("grad_")
        needed = need_x if name == "x" else need_skips if name in _SKIPS else need_parameters
        tensor = operands[name] if needed else None
        grads.append(x.new_empty(0) if tensor is None else _empty_like(name, tensor))
    return tuple(grads)


def _lists(given: Operands) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    """Weights, biases and gains as the kernels take them."""
    tensors = given.tensors()
    weights, biases, gains = (
        [tensors[name] for name in names if tensors[name] is not None]
        for names in (_WEIGHTS, _BIASES, _GAINS)
    )
    return weights, [b.contiguous() for b in biases], [g.contiguous() for g in gains]


def _image_bias(given: Operands) -> Tensor | None:
    return None if given.image_bias is None else given.image_bias.contiguous()


def _settings(given: Operands) -> tuple[Taps, Any]:
    """The taps, and the dropout as the kernels take it."""
    from ..kernels.expand import Dropout

    keep_from, scale = given.dropout_numbers()
    dropout = Dropout(given.seed, given.layer, keep_from, scale, given.first_image)
    return taps_of(given.conv_in, given.shift), dropout


def _check_forward(x: Tensor, *rest: Any) -> None:
    """Raises ValueError unless the forward can take these."""
    *tensors, packed, save, _keep = rest
    given = Operands(*tensors)
    check_of_op(x, given)
    if packed is not None:
        _check_given(x, given, packed, save)


def _check_given(x: Tensor, given: Operands, packed: Tensor, save: bool) -> None:
    """Raises ValueError unless these packed weights fit the operands."""
    _check_packed(x, given, packed, save)
    skips = given.skips()
    if len(skips) > 1 and skips[0].shape[1] % x.shape[1] != 0:
        raise ValueError(
            f"packed weights need a first skip of a multiple of {x.shape[1]} channels, "
            f"got {skips[0].shape[1]}"
        )


def _check(
    x: Tensor, grad_y: Tensor, h: Tensor, packed: Tensor, gates: Tensor, given: Operands
) -> None:
    """Raises ValueError unless the backward can take these."""
    check_of_op(x, given)
    check_images(x, grad_y=grad_y, h=h, **{"gates": gates} if gates.ndim > 1 else {})
    _check_packed(x, given, packed, True)


def _check_packed(x: Tensor, given: Operands, packed: Tensor, adjoint: bool) -> None:
    size = _packed_size(x, given, adjoint)
    if packed.shape != (size,) or packed.dtype != x.dtype or packed.device != x.device:
        raise ValueError(
            f"packed must have shape ({size},), {x.dtype}, on {x.device}, got "
            f"{tuple(packed.shape)}, {packed.dtype}, on {packed.device}"
        )


def _packed_size(x: Tensor, given: Operands, adjoint: bool) -> int:
    from ..kernels.geometry import packed_sizes, planes_of

    f = x.shape[1]
    planes = planes_of([skip.shape[1] for skip in given.skips()], f)
    return sum(packed_sizes(f, taps_of(given.conv_in, given.shift), planes, adjoint))


def _empty_like(name: str, tensor: Tensor) -> Tensor:
    """For a gradient: channels_last for images and for kernels that are that alone."""
    last = FIELDS[name].layout == "ChannelsLast"
    if FIELDS[name].layout == "Kernel" and not tensor.is_contiguous():
        last = tensor.is_contiguous(memory_format=torch.channels_last)
    order = torch.channels_last if last else torch.contiguous_format
    return torch.empty(tensor.shape, dtype=tensor.dtype, device=tensor.device, memory_format=order)


def _save_for_backward(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    x, *tensors, shift, dropout, layer, first_image, given, _save, _keep = inputs
    _, h, packed, gates = output
    ctx.mark_non_differentiable(h, packed, gates)
    packed = packed if given is None else given
    ctx.set_materialize_grads(False)
    ctx.settings = shift, dropout, layer, first_image
    ctx.save_for_backward(x, h, packed, gates, *tensors)


def _backward(ctx: Any, grad_y: Tensor | None, *_: Tensor | None) -> tuple[Tensor | None, ...]:
    x, h, packed, gates, *tensors = ctx.saved_tensors
    given = Operands(*tensors, *ctx.settings)
    if grad_y is None:
        return None, *(None for _ in given), None, None, None
    need_x, *rest = ctx.needs_input_grad
    needs = need_x, any(rest[: len(_SKIPS)]), any(rest[len(_SKIPS) :])
    found = call(backward_op, grad_y, x, h, packed, gates, *given, *needs)
    grads = input_gradients(given, _GRADIENTS, found)
    wanted = ctx.needs_input_grad[:-3]
    return *(g if want else None for g, want in zip(grads, wanted, strict=True)), None, None, None


forward_op = register_op(
    "gated_resnet_triton",
    f"(Tensor x, {SCHEMA}, Tensor? packed, bool save, bool keep) -> "
    "(Tensor, Tensor, Tensor, Tensor)",
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
