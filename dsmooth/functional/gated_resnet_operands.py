"""The operands of a gated resnet: the field table, their check, and their order in ops."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any, NamedTuple, NoReturn, SupportsIndex, TypeVar

import torch
from torch import Tensor

from ..kernels.geometry import Operands, Settings, empty_channels_last, empty_weight
from .checks import check_tensor
from .dispatch import autocast_dtype
from .shifted_conv import check_kernel

Result = TypeVar("Result")
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
    of_weights: bool  # whether the backward writes its gradient with all weights' or not at all
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
    fields = {}
    for columns, shape in re.findall(r"^FIELD\((.*), \((.*)\)\)$", text, re.MULTILINE):
        words = re.sub(r"\bk(?=[A-Z])", "", columns).split(", ")
        name, group, presence, conditions, dtype, layout, gradient = words
        fields[name] = Field(
            shape.replace("2 * ", "2").replace(",", ""),
            dtype,
            layout,
            beside[conditions],
            optional=presence == "Optional",
            gradient=gradient != "None",
            of_weights=gradient == "OfWeights",
            group=group,
        )
    return fields


FIELDS = _read_fields()


def empty_gradient(name: str, tensor: Tensor) -> Tensor:
    """Uninitialised, in the memory order that a backward writes."""
    if FIELDS[name].layout == "ChannelsLast":
        return empty_channels_last(tensor, tensor.shape[1])
    return empty_weight(tensor)


# Declarations of the operands and settings of an operator. save: whether a backward will follow.
TENSORS = [
    f"Tensor{'?' * (FIELDS[name].optional or bool(FIELDS[name].conditions))} {name}"
    for name in Operands._fields
]
SETTINGS = "str shift, float dropout, int layer, int first_image, bool save"


def grouped(function: Callable[..., Result], start: int) -> Callable[..., Result]:
    """The same function for an operator, which passes operands and settings one by one.

    start: the number of arguments in front of them.
    """
    middle = start + len(Operands._fields)
    end = middle + len(Settings._fields)

    def flat(*args: Any) -> Result:
        operands, settings = Operands(*args[start:middle]), Settings(*args[middle:end])
        return function(*args[:start], operands, settings, *args[end:])

    return flat


def check_operands(
    images: Mapping[str, Tensor],
    weights: Mapping[str, Tensor | None],
    seed: Tensor | None,
    settings: Settings,
) -> None:
    """Raise ValueError unless every operand has the expected shape and x's dtype and device.

    Raises ValueError also for settings out of range, TypeError for an operand that is no tensor.
    Messages have the names of the field table, and the extension has the same messages. images: x
    and the skips; weights: conv_in to image_bias.
    """
    x, conv = images["x"], weights["conv_in"]
    if isinstance(x, Tensor) and not x.is_floating_point():
        raise ValueError(f"x must be of a floating-point dtype, got {x.dtype}")
    for name, image in images.items():
        if not isinstance(image, Tensor) or image.ndim != 4:
            _refuse_shape(name, image, "4 dimensions")
        if 0 in image.shape[1:]:
            _refuse_shape(name, image, "a channel, a row and a column")
    if not isinstance(conv, Tensor) or conv.ndim != 4 or 0 in conv.shape:
        _refuse_shape("conv_in", conv, "shape (F, 2 F, kh, kw)")
    dtypes = (x.dtype,) if autocast_dtype(x) is None else _AUTOCAST_DTYPES
    batch, _, rows, cols = x.shape
    f, _, kh, kw = conv.shape
    for name, image in images.items():
        shape = (batch, f if name == "x" else image.shape[1], rows, cols)
        _check_operand(name, image, shape, dtypes, x.device)
    two_s = 2 * sum(image.shape[1] for name, image in images.items() if name != "x")
    extents = {"1": 1, "B": batch, "F": f, "2F": 2 * f, "KH": kh, "KW": kw, "2S": two_s}
    present = {name for name, tensor in {**images, **weights}.items() if tensor is not None}
    for name, weight in weights.items():
        field = FIELDS[name]
        expected = present.issuperset(field.conditions)
        beside = " and ".join(field.conditions)
        if weight is not None:
            if not expected:
                raise ValueError(f"{name} must be None without {beside}, got a tensor")
            sizes = tuple([extents[extent] for extent in field.shape.split()])
            _check_operand(name, weight, sizes, dtypes, x.device)
        elif expected and not field.optional:
            raise ValueError(f"{name} must be given{beside and f' with {beside}'}, got None")
    if seed is not None:
        _check_operand("seed", seed, (), (torch.int64,), x.device)
    shift, dropout, layer, first_image = settings
    check_kernel(conv, shift, "conv_in")
    if not 0 <= dropout < 1:
        raise ValueError(f"dropout must lie in [0, 1), got {dropout}")
    for name, number, bits in (("layer", layer, 32), ("first_image", first_image, 31)):
        if not isinstance(number, SupportsIndex) or not 0 <= number < 2**bits:
            raise ValueError(f"{name} must be an int in 0 .. 2**{bits} - 1, got {number!r}")


def _check_operand(
    name: str,
    tensor: Tensor,
    shape: tuple[int, ...],
    dtypes: Collection[torch.dtype],
    device: torch.device,
) -> None:
    check_tensor(name, tensor, shape, device)
    if tensor.dtype not in dtypes:
        words = [str(dtype).removeprefix("torch.") for dtype in dtypes]
        got = str(tensor.dtype).removeprefix("torch.")
        raise ValueError(f"{name} must be {' or '.join(words)}, got {got}")


def _refuse_shape(name: str, tensor: object, expected: str) -> NoReturn:
    if not isinstance(tensor, Tensor):
        raise TypeError(f"{name} must be a tensor, got {type(tensor).__name__}")
    raise ValueError(f"{name} must have {expected}, got {tuple(tensor.shape)}")
