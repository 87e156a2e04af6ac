"""The operands of a gated resnet: the field table, the settings, their check, and the ops."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, NamedTuple, NoReturn

import torch
from torch import Tensor

from ..kernels.geometry import Dropout, Operands, empty_channels_last, empty_weight
from .dispatch import autocast_dtype, refuse_second_derivative, register_op
from .dropout import keep_from
from .shifted_conv import Shift, check_kernel

_AUTOCAST_DTYPES = (torch.float32, torch.bfloat16, torch.float16)  # that autocast casts
MAX_SKIPS = 2  # of the native op and the Triton op


class Field(NamedTuple):
    """A line of `gated_resnet.def`, which C++ reads and which explains the columns."""

    shape: str
    dtype: str = "Weight"
    layout: str = "Contiguous"
    conditions: tuple[str, ...] = ()  # the fields it comes with
    optional: bool = False
    gradient: bool = True
    group: str = "Input"


FIELDS = {
    "x": Field("B F H W", "Image", "ChannelsLast"),
    "skip": Field("B S_1 H W", "Image", "ChannelsLast", optional=True),
    "skip_2": Field("B S_2 H W", "Image", "ChannelsLast", ("skip",), optional=True),
    "conv_in": Field("F 2F KH KW", layout="Kernel"),
    "bias_in": Field("F"),
    "conv_out": Field("2F 2F KH KW", layout="Kernel"),
    "bias_out": Field("2F"),
    "nin_skip": Field("F 2S 1 1", conditions=("skip",)),
    "bias_nin": Field("F", conditions=("skip",), gradient=False),
    "gain_in": Field("F", optional=True),
    "gain_out": Field("2F", conditions=("gain_in",)),
    "gain_nin": Field("F", conditions=("skip", "gain_in")),
    "image_bias": Field("B 2F", optional=True),
    "seed": Field("", "Int64", optional=True, gradient=False),
    "y": Field("B F H W", "Image", "ChannelsLast", group="Output"),
    "h": Field("B F H W", "Image", "ChannelsLast", gradient=False, group="Saved"),
    "gates": Field("B 2F H W", "Image", "ChannelsLast", gradient=False, group="Saved"),
}
# The operands from conv_in to image_bias.
WEIGHTS = tuple(name for name in Operands._fields if FIELDS[name].dtype == "Weight")
# The gradients that the extension writes, and the operands that have one: bias_nin's is bias_in's.
GRADIENTS = tuple(f"grad_{name}" for name in Operands._fields if FIELDS[name].gradient)
DIFFERENTIABLE = tuple(n for n in Operands._fields if FIELDS[n].gradient or n == "bias_nin")
# The arguments of the ops: see `apart`.
SCHEMA = ", ".join(
    f"Tensor{'?' * (FIELDS[name].optional or bool(FIELDS[name].conditions))} {name}"
    for name in Operands._fields
)
SCHEMA += ", str shift, float dropout, int layer, int first_image"


class Settings(NamedTuple):
    """The arguments of an op that are no tensors (see `gated_resnet`)."""

    shift: Shift
    dropout: float
    layer: int
    first_image: int = 0

    def numbers(self) -> Dropout:
        """The dropout as the kernels take it."""
        least, scale = keep_from(self.dropout), 1 / (1 - self.dropout)
        return Dropout(self.layer, least, scale, self.first_image)


def apart(arguments: Sequence[Any]) -> tuple[Operands, Settings, Sequence[Any]]:
    """The arguments of an op: operands, settings, and the rest.

    An op takes each tensor as its own argument: torch takes lists of tensors apart in Python, at
    every call.
    """
    count, settings = len(Operands._fields), len(Settings._fields)
    rest = arguments[count + settings :]
    return Operands(*arguments[:count]), Settings(*arguments[count : count + settings]), rest


def is_needed(name: str, needs: Sequence[bool]) -> bool:
    """Whether the gradient of an operand is needed; needs: of x, of the skips, of parameters."""
    need_x, need_skips, need_parameters = needs
    return {"x": need_x, "skip": need_skips, "skip_2": need_skips}.get(name, need_parameters)


def empty_gradient(given: Operands, name: str, needs: Sequence[bool]) -> Tensor:
    """Uninitialised, in the memory order that a backward writes; no elements where not needed."""
    tensor = getattr(given, name)
    if tensor is None or not is_needed(name, needs):
        return given.x.new_empty(0)
    if FIELDS[name].layout == "ChannelsLast":
        return empty_channels_last(tensor, tensor.shape[1])
    return empty_weight(tensor)


def differentiable(
    name: str,
    option: tuple[str, Any],
    saved: int,
    outputs: Callable[..., tuple[Tensor, ...]],
    forward: Callable[..., tuple[Tensor, ...]],
    backward: Callable[..., Mapping[str, Tensor]],
    ordered: Callable[[Operands], Operands] = lambda given: given,
) -> tuple[Callable[..., Tensor], Any, Any]:
    """A function of operands, settings and an option: y (B, F, H, W), channels_last, and the ops of
    its forward and backward.

    name: of the forward's op; option: its last argument, and the default. outputs(given, save,
    option): uninitialised y and `saved` tensors for the backward, which without `save` have no
    elements; forward(given, settings, save, option): the same, computed. backward(grad_y, saved,
    given, settings, option, needs): the needed gradients by operand (see `is_needed`). ordered: the
    operands in the memory orders that their gradients have.
    """

    def compute(*args: Any) -> tuple[Tensor, ...]:
        given, settings, rest = apart(args)
        return forward(given, settings, *rest)

    def fake(*args: Any) -> tuple[Tensor, ...]:
        given, _, rest = apart(args)
        return outputs(given, *rest)

    def differentiate(grad_y: Tensor, *args: Any) -> tuple[Tensor, ...]:
        given, settings, (option, *needs) = apart(args[saved:])
        grads = backward(grad_y, args[:saved], given, settings, option, needs)
        none = given.x.new_empty
        return tuple([grads[n] if n in grads else none(0) for n in DIFFERENTIABLE])

    def fake_gradients(grad_y: Tensor, *args: Any) -> tuple[Tensor, ...]:
        given, _, (_, *needs) = apart(args[saved:])
        given = ordered(given)
        return tuple([empty_gradient(given, name, needs) for name in DIFFERENTIABLE])

    argument, default = option
    kept = "".join(f"Tensor saved_{i}, " for i in range(saved))
    results, grads = (", ".join(["Tensor"] * n) for n in (1 + saved, len(DIFFERENTIABLE)))
    forward_op = register_op(
        name, f"({SCHEMA}, bool save, {argument}) -> ({results})", compute, fake
    )
    backward_op = register_op(
        f"{name}_backward",
        f"(Tensor grad_y, {kept}{SCHEMA}, {argument}, bool need_x, bool need_skips, "
        f"bool need_parameters) -> ({grads})",
        differentiate,
        fake_gradients,
        refuse_second_derivative("gated resnet"),
    )

    class GatedResnet(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, *args: Any) -> Tensor:
            *inputs, option = args
            y, *kept = forward_op(*inputs, True, option)
            given, settings, _ = apart(inputs)
            ctx.save_for_backward(*kept, *given)
            ctx.rest = *settings, option
            return y

        @staticmethod
        def backward(ctx: Any, grad_y: Tensor) -> tuple[Tensor | None, ...]:
            wanted = ctx.needs_input_grad
            needs = wanted[0], any(wanted[1:3]), any(wanted[3:])
            found = backward_op(grad_y, *ctx.saved_tensors, *ctx.rest, *needs)
            grads = dict(zip(DIFFERENTIABLE, found, strict=True))
            named = zip(Operands._fields, wanted, strict=False)
            of_operands = [grads.get(name) if want else None for name, want in named]
            return *of_operands, *(None,) * len(ctx.rest)

    def run(given: Operands, settings: Settings, option: Any = default) -> Tensor:
        if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in given):
            return GatedResnet.apply(*given, *settings, option)
        return forward_op(*given, *settings, False, option)[0]

    return run, forward_op, backward_op


def check_operands(
    x: Tensor,
    skips: Sequence[Tensor],
    weights: dict[str, Any],
    seed: Tensor | None,
    settings: Settings,
) -> None:
    """Raises unless every tensor is there and has its shape, dtype and device, those of x deciding,
    and the settings are in their ranges.

    Raises ValueError, or TypeError for what is no tensor, with the names of the field table; the
    extension says the same in the same words. weights: conv_in to image_bias by these names.
    """
    if not x.is_floating_point():
        raise ValueError(f"x must be of a floating-point dtype, got {x.dtype}")
    dtypes = (x.dtype,) if autocast_dtype(x) is None else _AUTOCAST_DTYPES
    images = {"x": x} | {f"skip_{i}" if i > 1 else "skip": t for i, t in enumerate(skips, 1)}
    for name, image in images.items():
        if getattr(image, "ndim", None) != 4:
            _refuse_shape(name, image, "4 dimensions")
        if 0 in image.shape[1:]:
            _refuse_shape(name, image, "a channel, a row and a column")
    conv = weights["conv_in"]
    if getattr(conv, "ndim", None) != 4 or 0 in conv.shape:
        _refuse_shape("conv_in", conv, "shape (F, 2 F, kh, kw)")
    batch, _, rows, cols = x.shape
    f, _, kh, kw = conv.shape
    for name, image in images.items():
        shape = (batch, f if name == "x" else image.shape[1], rows, cols)
        _check_tensor(name, image, shape, dtypes, x)
    both = 2 * sum(skip.shape[1] for skip in skips)
    extents = {"1": 1, "B": batch, "F": f, "2F": 2 * f, "KH": kh, "KW": kw, "2S": both}
    given = {"skip"} if skips else set()
    if weights["gain_in"] is not None:
        given.add("gain_in")
    for name, weight in weights.items():
        field = FIELDS[name]
        expected = given.issuperset(field.conditions)
        beside = " and ".join(field.conditions)
        if weight is not None:
            if not expected:
                raise ValueError(f"{name} must be None without {beside}, got a tensor")
            shape = tuple([extents[extent] for extent in field.shape.split()])
            _check_tensor(name, weight, shape, dtypes, x)
        elif expected and not field.optional:
            raise ValueError(f"{name} must be given{beside and f' with {beside}'}, got None")
    if seed is not None:
        _check_tensor("seed", seed, (), (torch.int64,), x)
    shift, dropout, _, first_image = settings
    check_kernel(conv, shift, "conv_in")
    if not 0 <= dropout < 1:
        raise ValueError(f"dropout must lie in [0, 1), got {dropout}")
    if not isinstance(first_image, (int, torch.SymInt)) or not 0 <= first_image < 2**31:
        raise ValueError(f"first_image must lie in 0 .. 2**31 - 1, got {first_image}")


def _check_tensor(
    name: str, tensor: Any, shape: tuple[int, ...], dtypes: Collection[torch.dtype], x: Tensor
) -> None:
    if not isinstance(tensor, Tensor) or tensor.shape != shape:
        _refuse_shape(name, tensor, f"shape {shape}")
    if tensor.dtype not in dtypes:
        words = [str(dtype).removeprefix("torch.") for dtype in dtypes]
        got = str(tensor.dtype).removeprefix("torch.")
        raise ValueError(f"{name} must be {' or '.join(words)}, got {got}")
    if tensor.device != x.device:
        raise ValueError(f"{name} must be on {x.device}, got {tensor.device}")


def _refuse_shape(name: str, tensor: Any, expected: str) -> NoReturn:
    if not isinstance(tensor, Tensor):
        raise TypeError(f"{name} must be a tensor, got {type(tensor).__name__}")
    raise ValueError(f"{name} must have {expected}, got {tuple(tensor.shape)}")
