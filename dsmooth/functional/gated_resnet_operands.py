"""The operands of a gated resnet: the field table, settings and checks."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..fields import check_floating, check_number, check_tensor
from .dispatch import Impl, autocast_dtype
from .shifted_conv import Shift, check_kernel

Affine = tuple[Tensor, Tensor]  # weight (D, C, kh, kw) and bias (D,)
_AUTOCAST_DTYPES = (torch.float32, torch.bfloat16, torch.float16)  # cast by autocast


class Field(NamedTuple):
    """A line of `gated_resnet.def`, which explains the columns. C++ includes the same file."""

    shape: str
    dtype: str
    layout: str
    conditions: tuple[str, ...]  # the fields that it requires
    optional: bool
    is_parameter: bool  # the backward writes the gradients of all parameters, or of none


def _read_fields() -> dict[str, Field]:
    """The inputs of the table by name; the "k" of C++ constants and the "* " of "2 * F" are
    removed."""
    text = Path(__file__).with_name("gated_resnet.def").read_text()
    required = {"Skip": "skip", "Gains": "gain_in"}
    fields = {}
    line = r"^FIELD\((\w+), kInput, (.*), \((.*)\)\)$"
    for name, columns, shape in re.findall(line, text, re.MULTILINE):
        words = re.sub(r"\bk(?=[A-Z])", "", columns).split(", ")
        presence, conditions, dtype, layout, gradient = words
        fields[name] = Field(
            shape.replace("2 * ", "2").replace(",", ""),
            dtype,
            layout,
            tuple(required[word] for word in conditions.split(" | ") if word != "0"),
            optional=presence == "Optional",
            is_parameter=dtype == "Weight" and gradient != "Gradient",
        )
    return fields


FIELDS = _read_fields()


class Operands(NamedTuple):
    """The inputs of the field table. Also their gradients, each None unless it is computed."""

    x: Tensor
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

    def named(self, prefix: str = "") -> dict[str, Tensor]:
        """Those that are given, by their names after the prefix."""
        return {prefix + name: t for name, t in self._asdict().items() if t is not None}

    def zipped(self) -> list[tuple[Any, Field]]:
        """Pairs of each, or None, and its field."""
        return [*zip(self, FIELDS.values(), strict=True)]


class GatedResnetCall(NamedTuple):
    """The arguments of `functional.gated_resnet` other than tensors, and `save`: whether a backward
    follows."""

    shift: Shift
    dropout: float = 0.0
    layer: int = 0
    first_image: int = 0
    impl: Impl = "auto"
    save: bool = False

    @property
    def keep_from(self) -> int:
        """The least n = word >> 9 that is kept: its uniform (n + 1/2) 2**-23 is >= dropout."""
        return math.ceil(self.dropout * 2**23 - 0.5)

    @property
    def scale(self) -> float:
        """The factor by which dropout multiplies kept elements."""
        return 1 / (1 - self.dropout)


def operands_of(
    x: Tensor,
    conv_in: Affine,
    conv_out: Affine,
    skips: tuple[Tensor, ...],
    nin_skip: Affine | None,
    gains: tuple[Tensor, ...],
    image_bias: Tensor | None,
    seed: Tensor | None,
) -> Operands:
    """The operands in the order of the field table."""
    skip, skip_2 = (*skips, None, None)[:2]
    gain_in, gain_out, gain_nin = (*gains, None, None, None)[:3]
    nin, bias_nin = nin_skip or (None, None)
    gains_ = gain_in, gain_out, gain_nin
    return Operands(x, skip, skip_2, *conv_in, *conv_out, nin, bias_nin, *gains_, image_bias, seed)


def dtype_of(operands: Operands) -> torch.dtype:
    """The dtype in which a gated resnet takes and returns images."""
    return autocast_dtype(operands.x) or operands.x.dtype


def check_operands(operands: Operands, call: GatedResnetCall) -> None:
    """Raise ValueError unless every operand has the expected shape and x's dtype and device.

    Also raises ValueError for options out of range, TypeError for an operand that is not a tensor
    and for an integer x. Messages use the names of the field table, like those of the extension.
    """
    given = dict(zip(FIELDS, operands, strict=True))
    for name, field in FIELDS.items():
        required = " and ".join(field.conditions)
        if any(given[condition] is None for condition in field.conditions):
            if given[name] is not None:
                raise ValueError(f"{name} must be None without {required}, got a tensor")
        elif given[name] is None and not field.optional:
            raise ValueError(f"{name} must be given{required and f' with {required}'}, got None")
    x, conv = operands.x, operands.conv_in
    check_floating("x", x)
    check_tensor("x", x, ("B", "F", "H", "W"))
    check_kernel(conv, call.shift, "conv_in")
    batch, _, rows, cols = x.shape
    f, _, kh, kw = conv.shape
    extents = {"1": 1, "B": batch, "F": f, "2F": 2 * f, "H": rows, "W": cols, "KH": kh, "KW": kw}
    dtypes = (x.dtype,) if autocast_dtype(x) is None else _AUTOCAST_DTYPES
    for name, field in FIELDS.items():
        tensor = given[name]
        if tensor is None:
            continue
        shape = [extents.get(extent, extent) for extent in field.shape.split()]
        check_tensor(
            name, tensor, shape, x.device, (torch.int64,) if field.dtype == "Int64" else dtypes
        )
        if field.dtype == "Image":
            if 0 in tensor.shape[1:]:
                got = tuple(tensor.shape)
                raise ValueError(f"{name} must have a channel, a row and a column, got {got}")
            extents["2S"] = 2 * tensor.shape[1] + (extents["2S"] if name == "skip_2" else 0)
    if not 0 <= call.dropout < 1:
        raise ValueError(f"dropout must lie in [0, 1), got {call.dropout}")
    check_number("layer", call.layer, 0, 2**32 - 1)
    check_number("first_image", call.first_image, 0, 2**31 - 1)
