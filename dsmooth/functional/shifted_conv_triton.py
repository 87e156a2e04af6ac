"""The Triton op of the shifted convolutions; `shifted_conv2d` checks arguments and chooses it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..kernels.geometry import Taps, empty_channels_last
from .dispatch import refuse_second_derivative
from .registration import call, register_op
from .taps import check_kernel, taps_of, transposed_taps_of

MOST = 3  # convolutions that one call of the op computes


class Operands(NamedTuple):
    """Of one convolution: x (B, C, H, W); weight (D, C, kh, kw), of a transposed one (C, D, kh,
    kw); gain (D,), if the weight is v of a weight norm per filter; bias (D,); the weight as
    `pack_weights` packed it, or none; the shift.

    weight, gain and bias are float32, float64 for float64 x.
    """

    x: Tensor
    weight: Tensor
    gain: Tensor | None
    bias: Tensor | None
    packed: Tensor | None
    shift: str


_ABSENT = (None,) * len(Operands._fields)
_TENSORS = 4  # among them, which have gradients
_NAMES = tuple(f"{name}_{i}" for i in range(MOST) for name in Operands._fields)
_SCHEMA = ", ".join(
    f"Tensor{'' if name in ('x_0', 'weight_0') else '?'} {name}"
    if not name.startswith("shift")
    else f"str{'' if name == 'shift_0' else '?'} {name}"
    for name in _NAMES
)


def shifted_convs_triton(
    convs: Sequence[Operands], stride: int, transposed: bool
) -> tuple[Tensor, ...]:
    """`shifted_conv2d`, or (transposed) `shifted_conv_transpose2d`, of each of at most MOST, which
    share their launches; channels_last."""
    given = [value for conv in convs for value in conv]
    absent = _ABSENT * (MOST - len(convs))
    results = call(shifted_conv_triton, *given, *absent, stride, transposed)
    return tuple(results[: len(convs)])


def _given(values: Sequence[Any]) -> list[Operands]:
    """The convolutions that are there."""
    size = len(Operands._fields)
    found = [Operands(*values[i : i + size]) for i in range(0, MOST * size, size)]
    return [conv for conv in found if conv.x is not None]


def _taps(conv: Operands, stride: int, transposed: bool) -> Taps:
    if transposed:
        return transposed_taps_of(conv.weight, conv.shift)
    return taps_of(conv.weight, conv.shift, stride)


def _size(conv: Operands, stride: int, transposed: bool) -> tuple[int, int]:
    rows, cols = conv.x.shape[2:]
    if transposed:
        return 2 * rows, 2 * cols
    return (rows + stride - 1) // stride, (cols + stride - 1) // stride


def _check(values: Sequence[Any], stride: int, transposed: bool) -> None:
    """Raises ValueError for what the kernels would read beyond."""
    convs = _given(values)
    first = convs[0].x
    exact = torch.float64 if first.dtype == torch.float64 else torch.float32
    for x, weight, gain, bias, packed, shift in convs:
        check_kernel(weight, shift)
        channels, filters = weight.shape[:2] if transposed else weight.shape[1::-1]
        if x.ndim != 4 or x.shape[1] != channels:
            raise ValueError(f"x must have shape (B, {channels}, H, W), got {tuple(x.shape)}")
        if x.dtype != first.dtype or x.device != first.device:
            raise ValueError(
                f"x must be {first.dtype} on {first.device}, got {x.dtype} on {x.device}"
            )
        if stride not in (1, 2) or (transposed and (stride != 2 or weight.shape[2] != 2)):
            raise ValueError(f"stride {stride} and a kernel of {weight.shape[2]} rows do not fit")
        _check_tensor("weight", weight, tuple(weight.shape), exact, x)
        for name, vector in (("gain", gain), ("bias", bias), ("packed", packed)):
            if (vector is None) != (getattr(convs[0], name) is None):
                raise ValueError(f"{name} must be given for all convolutions or for none")
        for name, vector in (("gain", gain), ("bias", bias)):
            if vector is not None:
                _check_tensor(name, vector, (filters,), exact, x)
        if packed is not None:
            size = weight.numel() * (1 + (packed.shape != (weight.numel(),)))
            _check_tensor("packed", packed, (size,), x.dtype, x)


def _check_tensor(
    name: str, tensor: Tensor, shape: tuple[int, ...], dtype: torch.dtype, x: Tensor
) -> None:
    if tuple(tensor.shape) != shape or tensor.dtype != dtype or tensor.device != x.device:
        raise ValueError(
            f"{name} must have shape {shape}, {dtype}, on {x.device}, got {tuple(tensor.shape)}, "
            f"{tensor.dtype}, on {tensor.device}"
        )


def _as_kernels(values: Sequence[Any], stride: int, transposed: bool) -> list[Any]:
    """The convolutions as the kernels take them."""
    from ..kernels.shifted_conv import Conv

    return [
        Conv(
            conv.x,
            conv.weight,
            None if conv.gain is None else conv.gain.contiguous(),
            None if conv.bias is None else conv.bias.contiguous(),
            _taps(conv, stride, transposed),
            _size(conv, stride, transposed),
            None if conv.packed is None else conv.packed.contiguous(),
        )
        for conv in _given(values)
    ]


def _forward(*args: Any) -> tuple[Tensor, ...]:
    """MOST results, empty ones for what is not there, and for the backward the packed weights: no
    elements if they were given."""
    from ..kernels import shifted_conv as kernels

    *values, stride, transposed = args
    _check(values, stride, transposed)
    if any(conv.x.numel() == 0 or conv.weight.numel() == 0 for conv in _given(values)):
        ys, packed = _empty_outputs(*args)
        return *_padded(ys), packed.zero_()
    ys, own = kernels.forward(_as_kernels(values, stride, transposed), transposed=transposed)
    return *_padded(ys), values[0].new_empty(0) if own is None else own


def _outputs(*args: Any) -> tuple[Tensor, ...]:
    *values, stride, transposed = args
    _check(values, stride, transposed)
    ys, packed = _empty_outputs(*args)
    return *_padded(ys), packed


def _empty_outputs(*args: Any) -> tuple[list[Tensor], Tensor]:
    *values, stride, transposed = args
    convs = _given(values)
    ys = [_empty_output(conv, stride, transposed) for conv in convs]
    return ys, convs[0].x.new_empty(_own_size(convs))


def _own_size(convs: Sequence[Operands]) -> int:
    """How many numbers the op packs."""
    return sum(2 * conv.weight.numel() for conv in convs if conv.packed is None)


def _empty_output(conv: Operands, stride: int, transposed: bool) -> Tensor:
    filters = conv.weight.shape[1 if transposed else 0]
    return empty_channels_last(conv.x, filters, _size(conv, stride, transposed))


def _padded(tensors: Sequence[Tensor]) -> list[Tensor]:
    """MOST tensors, of which those that are not there have no elements."""
    return [*tensors, *(tensors[0].new_empty(0) for _ in range(MOST - len(tensors)))]


def _compute_gradients(*args: Any) -> tuple[Tensor, ...]:
    """Gradients of each x (channels_last), each weight (contiguous or channels_last as it is), each
    gain and each bias; one that is not needed or not there has no elements."""
    from ..kernels import shifted_conv as kernels

    grad_ys, packed, values, (stride, transposed, need_x, need_parameters) = _apart(args)
    _check_backward(grad_ys, packed, values, stride, transposed)
    convs = _given(values)
    if any(conv.x.numel() == 0 for conv in convs):
        return tuple(grad.zero_() for grad in _gradients(*args))
    found = kernels.backward(
        grad_ys[: len(convs)],
        _as_kernels(values, stride, transposed),
        packed.contiguous() if packed.numel() else None,
        transposed=transposed,
        need_x=need_x,
        need_parameters=need_parameters,
    )
    nothing = convs[0].x.new_empty
    return tuple([kind[i] if i < len(kind) else nothing(0) for i in range(MOST) for kind in found])


def _gradients(*args: Any) -> tuple[Tensor, ...]:
    grad_ys, packed, values, (stride, transposed, need_x, need_parameters) = _apart(args)
    _check_backward(grad_ys, packed, values, stride, transposed)
    grads = []
    for conv in _given(values):
        x, weight, gain, bias, *_ = conv
        last = not weight.is_contiguous() and weight.is_contiguous(
            memory_format=torch.channels_last
        )
        layout = torch.channels_last if last else torch.contiguous_format
        grads += [
            empty_channels_last(x, x.shape[1]) if need_x else x.new_empty(0),
            torch.empty(weight.shape, dtype=weight.dtype, device=x.device, memory_format=layout)
            if need_parameters
            else x.new_empty(0),
            *(
                x.new_empty(0) if v is None or not need_parameters else v.new_empty(v.shape)
                for v in (gain, bias)
            ),
        ]
    nothing = grads[0].new_empty
    return *grads, *(nothing(0) for _ in range(_TENSORS * MOST - len(grads)))


def _apart(args: Sequence[Any]) -> tuple[list[Any], Tensor, list[Any], tuple[Any, ...]]:
    """grad_ys, the packed weights, the operands and the settings of the backward op."""
    *tensors, stride, transposed, need_x, need_parameters = args
    settings = stride, transposed, need_x, need_parameters
    return tensors[:MOST], tensors[MOST], tensors[MOST + 1 :], settings


def _check_backward(
    grad_ys: Sequence[Any], packed: Tensor, values: Sequence[Any], stride: int, transposed: bool
) -> None:
    _check(values, stride, transposed)
    convs = _given(values)
    for grad_y, conv in zip(grad_ys, convs, strict=False):
        if grad_y is None:
            raise ValueError("grad_y must be given for each convolution, got None")
        filters = conv.weight.shape[1 if transposed else 0]
        shape = conv.x.shape[0], filters, *_size(conv, stride, transposed)
        _check_tensor("grad_y", grad_y, shape, conv.x.dtype, conv.x)
    _check_tensor("packed", packed, (_own_size(convs),), convs[0].x.dtype, convs[0].x)
    for conv in convs:
        if conv.packed is not None and len(conv.packed) == conv.weight.numel():
            raise ValueError("packed weights were packed without gradients")


def _save_for_backward(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    *values, stride, transposed = inputs
    *ys, packed = output
    convs = _given(values)
    ctx.mark_non_differentiable(packed, *ys[len(convs) :])
    ctx.set_materialize_grads(False)
    ctx.settings = stride, transposed
    ctx.shifts = [conv.shift for conv in convs]
    ctx.save_for_backward(packed, *(tensor for conv in convs for tensor in conv[:-1]))


def _backward(ctx: Any, *grads_of_outputs: Tensor | None) -> tuple[Any, ...]:
    packed, *tensors = ctx.saved_tensors
    wanted = ctx.needs_input_grad
    count = len(ctx.shifts)
    if all(grad is None for grad in grads_of_outputs):
        return (None,) * len(wanted)
    values: list[Any] = []
    grad_ys: list[Tensor] = []
    for i, shift in enumerate(ctx.shifts):
        x, weight, gain, bias, given = tensors[5 * i : 5 * i + 5]
        conv = Operands(x, weight, gain, bias, given, shift)
        values += conv
        grad = grads_of_outputs[i]
        grad_ys.append(_empty_output(conv, *ctx.settings).zero_() if grad is None else grad)
    size = len(Operands._fields)
    places = range(0, count * size, size)
    need_x = any(wanted[i] for i in places)
    need_parameters = any(any(wanted[i + 1 : i + _TENSORS]) for i in places)
    found: Sequence[Any] = ()
    if need_x or need_parameters:
        found = call(
            shifted_conv_triton_backward,
            *(*grad_ys, *(None,) * (MOST - count)),
            packed,
            *(*values, *_ABSENT * (MOST - count)),
            *(*ctx.settings, need_x, need_parameters),
        )
    results: list[Any] = [None] * len(wanted)
    for i, place in enumerate(places):
        for j in range(_TENSORS):
            if wanted[place + j]:
                results[place + j] = found[_TENSORS * i + j]
    return tuple(results)


shifted_conv_triton = register_op(
    "shifted_conv_triton",
    f"({_SCHEMA}, int stride, bool transposed) -> ({', '.join(['Tensor'] * (MOST + 1))})",
    _forward,
    _outputs,
    _backward,
    _save_for_backward,
)
shifted_conv_triton_backward = register_op(
    "shifted_conv_triton_backward",
    "(Tensor grad_y_0, Tensor? grad_y_1, Tensor? grad_y_2, Tensor packed, "
    f"{_SCHEMA}, int stride, bool transposed, bool need_x, bool need_parameters) -> "
    f"({', '.join(['Tensor'] * _TENSORS * MOST)})",
    _compute_gradients,
    _gradients,
    refuse_second_derivative("Triton convolutions"),
)
