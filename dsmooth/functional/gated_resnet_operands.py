"""The operands of a gated resnet, shared by its implementations: the field table and its check."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import torch
from torch import Tensor

from .dropout import keep_from
from .taps import check_kernel

MAX_SKIPS = 2  # of the native op and the Triton op


class Field(NamedTuple):
    """A line of `gated_resnet.def`, which explains the columns."""

    name: str
    group: str
    needed: bool
    conditions: tuple[str, ...]  # names of the fields it comes with
    dtype: str
    layout: str
    gradient: bool
    shape: str  # an expression in the letters of the extents


_CONDITIONS = {"kSkip": "skip", "kGains": "gain_in"}


def _read_table() -> dict[str, Field]:
    columns = r"(\w+), k(\w+), k(\w+), ([\w |]+), k(\w+), k(\w+), k(\w+), \((.*)\)"
    text = Path(__file__).with_name("gated_resnet.def").read_text()
    fields = {}
    for line in re.findall(rf"^FIELD\({columns}\)$", text, re.MULTILINE):
        name, group, presence, with_, dtype, layout, gradient, shape = line
        conditions = tuple(_CONDITIONS[word] for word in with_.split(" | ") if word != "0")
        fields[name] = Field(
            name,
            group,
            presence == "Needed",
            conditions,
            dtype,
            layout,
            gradient == "Gradient",
            f"({shape},)" if shape else "()",
        )
    return fields


FIELDS = _read_table()
# The arguments of the ops beside x, and the results of their backwards.
TENSORS = tuple(f.name for f in FIELDS.values() if f.group == "Input" and f.name != "x")
GRADIENTS = tuple(f"grad_{f.name}" for f in FIELDS.values() if f.group == "Input" and f.gradient)
SCHEMA = ", ".join(
    [
        *(
            f"Tensor{'' if FIELDS[name].needed and not FIELDS[name].conditions else '?'} {name}"
            for name in TENSORS
        ),
        "str shift, float dropout, int layer, int first_image",
    ]
)


def _compile_shapes() -> Callable[..., dict[str, Any]]:
    """Shapes by name, None for what must be absent: Python reads the table's shapes as C++ does.

    A function of the extents and of whether there are skips and gains.
    """
    items = []
    for field in FIELDS.values():
        condition = " and ".join(field.conditions)
        items.append(
            f"{field.name!r}: {field.shape}" + f" if {condition} else None" * bool(condition)
        )
    letters = "B, F, H, W, KH, KW, S_1, S_2, S, skip, gain_in"
    return eval(f"lambda {letters}: {{{', '.join(items)}}}")


_shapes = _compile_shapes()


class Operands(NamedTuple):
    """The operands beside x: the tensors of the field table in its order, then settings.

    The ops take each tensor as its own argument: torch takes lists of tensors apart in Python, at
    every call.
    """

    skip: Tensor | None
    skip_2: Tensor | None
    conv_in: Tensor
    bias_in: Tensor
    conv_out: Tensor
    bias_out: Tensor
    nin_skip: Tensor | None
    bias_nin: Tensor | None
    gain_in: Tensor | None
    gain_out: Tensor | None
    gain_nin: Tensor | None
    image_bias: Tensor | None
    seed: Tensor | None
    shift: str
    dropout: float
    layer: int
    first_image: int = 0

    def tensors(self) -> dict[str, Any]:
        """The tensors by name, None for those that are absent."""
        return dict(zip(TENSORS, self, strict=False))

    def skips(self) -> list[Tensor]:
        return [skip for skip in (self.skip, self.skip_2) if skip is not None]

    def dropout_numbers(self) -> tuple[int, float]:
        """The least word >> 9 that is kept, and what a kept element is multiplied by."""
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout must lie in [0, 1), got {self.dropout}")
        if self.dropout > 0 and self.seed is None:
            raise ValueError(f"seed must be given with dropout {self.dropout}, got None")
        return keep_from(self.dropout), 1 / (1 - self.dropout)


def check_of_op(x: Tensor, given: Operands) -> None:
    """Raises ValueError unless an op can take these: see `check_operands`."""
    check_kernel(given.conv_in, given.shift, "conv_in")
    exact = torch.float64 if x.dtype == torch.float64 else torch.float32
    weights = given.tensors()
    del weights["skip"], weights["skip_2"], weights["seed"]
    if given.skip is None and given.skip_2 is not None:
        raise ValueError("skip_2 must be None without skip, got a tensor")
    check_operands(x, given.skips(), weights, given.seed, (x.dtype,), (exact,))


def check_operands(
    x: Tensor,
    skips: Sequence[Tensor],
    weights: Mapping[str, Any],
    seed: Tensor | None,
    image_dtypes: Collection[torch.dtype],
    weight_dtypes: Collection[torch.dtype],
) -> None:
    """Raises unless every tensor is there and has its shape, dtype and device, those of x deciding.

    Raises ValueError, or TypeError for what is no tensor, with the names of the field table; the
    extension says the same in the same words. weights: conv_in to image_bias by these names.
    """
    for i, image in enumerate((x, *skips)):
        if getattr(image, "ndim", None) != 4:
            _refuse_shape(_image_name(i), image, "4 dimensions")
    conv = weights["conv_in"]
    if getattr(conv, "ndim", None) != 4 or 0 in conv.shape:
        _refuse_shape("conv_in", conv, "shape (F, 2 F, kh, kw)")
    batch, channels, rows, cols = x.shape
    f, _, kh, kw = conv.shape
    if not (channels and rows and cols):
        _refuse_shape("x", x, "a channel, a row and a column")
    device = x.device
    all_channels = 0
    for i, image in enumerate((x, *skips)):
        channels = image.shape[1] if i > 0 else f
        shape: Any = (batch, channels, rows, cols)
        if image.shape != shape or image.dtype not in image_dtypes or image.device != device:
            _refuse(_image_name(i), image, shape, image_dtypes, x)
        if not channels:
            _refuse_shape(_image_name(i), image, "a channel, a row and a column")
        all_channels += channels
    gains = weights["gain_in"] is not None
    shapes = _shapes(batch, f, rows, cols, kh, kw, 0, 0, all_channels - f, len(skips) > 0, gains)
    for name, weight in weights.items():
        shape = shapes[name]
        if weight is None:
            if shape is not None and FIELDS[name].needed:
                _refuse_absence(name)
        elif (
            getattr(weight, "shape", None) != shape
            or weight.dtype not in weight_dtypes
            or weight.device != device
        ):
            _refuse(name, weight, shape, weight_dtypes, x)
    if seed is not None and (
        getattr(seed, "shape", None) != () or seed.dtype != torch.int64 or seed.device != device
    ):
        _refuse("seed", seed, (), (torch.int64,), x)


def _image_name(i: int) -> str:
    return "x" if i == 0 else "skip" if i == 1 else f"skip_{i}"


def check_images(x: Tensor, **images: Tensor) -> None:
    """Raises ValueError unless what a backward reads, by name, goes with x."""
    batch, f, rows, cols = x.shape
    shapes = _shapes(batch, f, rows, cols, 0, 0, 0, 0, 0, False, False)
    for name, image in images.items():
        shape = shapes[name.removeprefix("grad_")]
        if image.shape != shape or image.dtype != x.dtype or image.device != x.device:
            _refuse(name, image, shape, (x.dtype,), x)


def _refuse(
    name: str, tensor: Any, shape: Any, dtypes: Collection[torch.dtype], x: Tensor
) -> NoReturn:
    """The error of a tensor that is not as it must be."""
    if shape is None:
        missing = " and ".join(FIELDS[name].conditions)
        raise ValueError(f"{name} must be None without {missing}, got a tensor")
    if getattr(tensor, "shape", None) != shape:
        _refuse_shape(name, tensor, f"shape {tuple(shape)}")
    if not isinstance(tensor, Tensor):
        raise TypeError(f"{name} must be a tensor, got {type(tensor).__name__}")
    if tensor.dtype not in dtypes:
        words = [str(dtype).removeprefix("torch.") for dtype in dtypes]
        got = str(tensor.dtype).removeprefix("torch.")
        raise ValueError(f"{name} must be {' or '.join(words)}, got {got}")
    raise ValueError(f"{name} must be on {x.device}, got {tensor.device}")


def _refuse_shape(name: str, tensor: Any, expected: str) -> NoReturn:
    if not isinstance(tensor, Tensor):
        raise TypeError(f"{name} must be a tensor, got {type(tensor).__name__}")
    raise ValueError(f"{name} must have {expected}, got {tuple(tensor.shape)}")


def _refuse_absence(name: str) -> NoReturn:
    beside = " and ".join(FIELDS[name].conditions)
    raise ValueError(f"{name} must be given{beside and f' with {beside}'}, got None")


def input_gradients(
    given: Operands, names: Sequence[str], grads: Sequence[Tensor]
) -> tuple[Tensor | None, ...]:
    """The gradients of x and the operands as autograd wants them, from those of these names.

    bias_nin is added to h as bias_in is, and so has its gradient if it has none of its own.
    """
    by_name = dict(zip(names, grads, strict=True))
    if given.bias_nin is not None and "grad_bias_nin" not in by_name:
        by_name["grad_bias_nin"] = by_name["grad_bias_in"].clone()
    return (
        by_name["grad_x"],
        *(
            None if tensor is None else by_name.get(f"grad_{name}")
            for name, tensor in given.tensors().items()
        ),
        *(None,) * (len(given) - len(TENSORS)),
    )
