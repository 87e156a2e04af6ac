"""The operands of a gated resnet: the field table, their check, and the registration of the ops."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any, NamedTuple, NoReturn, SupportsIndex

import torch
from torch import Tensor

from ..kernels.geometry import Operands, Settings, empty_channels_last, empty_weight
from .dispatch import Grads, autocast_dtype, register_op
from .shifted_conv import check_kernel

_AUTOCAST_DTYPES = (torch.float32, torch.bfloat16, torch.float16)  # that autocast casts
MAX_SKIPS = 2  # of the native op and the Triton op


class Field(NamedTuple):
    """A line of `gated_resnet.def`, which explains the columns. C++ reads the same file."""

    shape: str
    dtype: str
    layout: str
    conditions: tuple[str, ...]  # the fields it comes with
    optional: bool
    gradient: bool
    of_weights: bool  # whether its gradient comes with those of all weights or not at all
    group: str


def _read_fields() -> dict[str, Field]:
    """The table by the names of its tensors; "k" and "2 * " leave the words of C++."""
    text = Path(__file__).with_name("gated_resnet.def").read_text()
    beside = {
        "0": (),
        "Skip": ("skip",),
        "Gains": ("gain_in",),
        "Skip | Gains": ("skip", "gain_in"),
    }
    found = {}
    for columns, shape in re.findall(r"^FIELD\((.*), \((.*)\)\)$", text, re.MULTILINE):
        words = re.sub(r"\bk(?=[A-Z])", "", columns).split(", ")
        name, group, presence, conditions, dtype, layout, gradient = words
        extents = shape.replace("2 * ", "2").replace(",", "")
        whether = presence == "Optional", gradient != "None", gradient == "OfWeights"
        found[name] = Field(extents, dtype, layout, beside[conditions], *whether, group)
    return found


FIELDS = _read_fields()


def empty_gradient(name: str, given: Operands) -> Tensor:
    """Uninitialised, in the memory order that a backward writes."""
    tensor = getattr(given, name)
    if FIELDS[name].layout == "ChannelsLast":
        return empty_channels_last(tensor, tensor.shape[1])
    return empty_weight(tensor)


def register_gated_resnet(
    name: str,
    option: tuple[str, Any],
    saved: int,
    outputs: Callable[..., tuple[Tensor, ...]],
    forward: Callable[..., tuple[Tensor, ...]],
    backward: Callable[..., Mapping[str, Tensor]],
    ordered: Callable[[Operands], Operands] = lambda given: given,
) -> tuple[Callable[..., Tensor], Any, Any]:
    """A function of operands, settings and an option, and the ops of its forward and backward.

    It returns y (B, F, H, W), channels_last.

    An op takes each tensor as its own argument: torch takes lists of tensors apart in Python, at
    every call. name: of the forward's op; option: its last argument, and the default.
    outputs(given, save, option): uninitialised y and `saved` tensors for the backward, which
    without `save` have no elements; forward(given, settings, save, option): the same, computed.
    backward(grad_y, saved, given, settings, option, needs): the gradients by operand. ordered: the
    operands in the memory orders that their gradients have.
    """
    count = len(Operands._fields)
    optional = {name for name, field in FIELDS.items() if field.optional or field.conditions}

    def compute(*args: Any) -> tuple[Tensor, ...]:
        return forward(Operands(*args[:count]), Settings(*args[count:-2]), *args[-2:])

    def fake(*args: Any) -> tuple[Tensor, ...]:
        return outputs(Operands(*args[:count]), *args[-2:])

    def differentiate(grad_y: Tensor, *args: Any) -> Grads:
        *rest, _, option, needs = args
        given, settings = Operands(*rest[saved:-4]), Settings(*rest[-4:])
        grads = backward(grad_y, rest[:saved], given, settings, option, needs)
        return [
            grads.get(name) if need else None
            for name, need in zip(Operands._fields, needs, strict=True)
        ]

    def fake_gradients(grad_y: Tensor, *args: Any) -> Grads:
        given = ordered(Operands(*args[saved : saved + count]))
        wanted = zip(Operands._fields, args[-1], strict=True)
        return [empty_gradient(name, given) if need else None for name, need in wanted]

    argument, default = option
    operator, forward_op, backward_op = register_op(
        name,
        [f"Tensor{'?' * (name in optional)} {name}" for name in Operands._fields],
        f"str shift, float dropout, int layer, int first_image, bool save, {argument}",
        saved,
        compute,
        fake,
        differentiate,
        fake_gradients,
    )

    def run(given: Operands, settings: Settings, option: Any = default) -> Tensor:
        save = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in given)
        return operator(*given, *settings, save, option)

    return run, forward_op, backward_op


def check_operands(
    images: Mapping[str, Tensor], weights: Mapping[str, Any], seed: Any, settings: Settings
) -> None:
    """Raise ValueError unless every operand has the expected shape and x's dtype and device.

    Raises ValueError also for settings out of range, TypeError for an operand that is no tensor.
    Messages have the names of the field table, and the extension has the same messages. images: x
    and the skips; weights: conv_in to image_bias.
    """
    x, conv = images["x"], weights["conv_in"]
    if not isinstance(x, Tensor):
        _refuse_shape("x", x, "4 dimensions")
    if not x.is_floating_point():
        raise ValueError(f"x must be of a floating-point dtype, got {x.dtype}")
    dtypes = (x.dtype,) if autocast_dtype(x) is None else _AUTOCAST_DTYPES
    for name, image in images.items():
        if getattr(image, "ndim", None) != 4:
            _refuse_shape(name, image, "4 dimensions")
        if 0 in image.shape[1:]:
            _refuse_shape(name, image, "a channel, a row and a column")
    if getattr(conv, "ndim", None) != 4 or 0 in conv.shape:
        _refuse_shape("conv_in", conv, "shape (F, 2 F, kh, kw)")
    batch, _, rows, cols = x.shape
    f, _, kh, kw = conv.shape
    for name, image in images.items():
        shape = (batch, f if name == "x" else image.shape[1], rows, cols)
        _check_tensor(name, image, shape, dtypes, x)
    both = 2 * sum(image.shape[1] for name, image in images.items() if name != "x")
    extents = {"1": 1, "B": batch, "F": f, "2F": 2 * f, "KH": kh, "KW": kw, "2S": both}
    given = {name for name, tensor in {**images, **weights}.items() if tensor is not None}
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
    shift, dropout, layer, first_image = settings
    check_kernel(conv, shift, "conv_in")
    if not 0 <= dropout < 1:
        raise ValueError(f"dropout must lie in [0, 1), got {dropout}")
    for name, number, bits in (("layer", layer, 32), ("first_image", first_image, 31)):
        if not isinstance(number, SupportsIndex) or not 0 <= number < 2**bits:
            raise ValueError(f"{name} must be an int in 0 .. 2**{bits} - 1, got {number!r}")


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
