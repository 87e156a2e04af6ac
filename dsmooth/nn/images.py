"""Checks of a network's input images (scale and size), and their Fourier features."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence

import torch
from torch import Tensor

from .._extension import warn_once
from ..fields import SettingError, check_tensor
from ..functional.logistic_mixture import snap_to_bytes
from ..pixels import PER_UNIT, are_sides, byte_of

# In steps between neighbouring bytes, in addition to the rounding of half precision.
OFF_THE_GRID = 1e-3


def snap_half_precision(x: Tensor) -> Tensor:
    """Undo the rounding of byte images to half precision, which is up to a quarter of a step.

    Returns at least float32. The derivative is 1."""
    if torch.finfo(x.dtype).bits > 16:
        return x
    exact = x.float()
    return exact + (snap_to_bytes(exact) - exact).detach()


def check_images(
    name: str,
    x: object,
    shape: Sequence[int | str] | None = None,
    device: torch.device | None = None,
    dtypes: Collection[torch.dtype] = (),
) -> None:
    """`check_tensor` of a shape, or of any; its TypeError has the calls that convert arrays and
    integers."""
    if not isinstance(x, Tensor) or not x.is_floating_point():
        kind = x.dtype if isinstance(x, Tensor) else type(x).__name__
        raise TypeError(
            f"{name} must be a floating-point tensor in [-1, 1], got {kind}: "
            f"dsmooth.to_float({name}.byte()) makes it of bytes, torch.from_numpy one of an array"
        )
    if shape is not None:
        check_tensor(name, x, shape, device, dtypes)


def check_size(size: Sequence[int], *names: str) -> tuple[int, int]:
    """(H, W). Raises ValueError, by the arguments' names, unless both are multiples of 4."""
    sizes = tuple(size) if hasattr(size, "__len__") else ()
    if len(sizes) != 2 or not are_sides(*sizes):
        words = f"must be a height and a width, positive multiples of 4, got {size}"
        raise SettingError(names or "image_size", words)
    return int(sizes[0]), int(sizes[1])


def check_scale(name: str, x: Tensor, *, as_bytes: bool) -> None:
    """Raise ValueError for values outside [-1, 1], and with `as_bytes` for values that are not
    bytes.

    Without it, images in [0, 1] are possible; they are warned of. NaN is accepted: the likelihood
    of such an image is NaN.
    """
    if not x.numel():
        return
    values = x.detach().nan_to_num(0.0, posinf=math.inf, neginf=-math.inf)
    low, high = (float(bound) for bound in values.aminmax())
    slack = OFF_THE_GRID / PER_UNIT + torch.finfo(x.dtype).eps
    if low < -1 - slack or high > 1 + slack:
        raise ValueError(
            f"{name} must lie in [-1, 1], got {low:g} to {high:g}: dsmooth.to_float makes it of "
            f"bytes, {name}.clamp(-1, 1) cuts it"
        )
    if not as_bytes:
        if low >= 0:  # bytes are checked exactly below
            words = "no value of %s is below 0: images must be in [-1, 1], 2 * %s - 1 if these are "
            warn_once(words + "in [0, 1]", name, name)
        return
    byte = byte_of(x.detach().to(torch.promote_types(x.dtype, torch.float32)))
    off = float((byte - byte.round()).abs().nan_to_num().max())
    if off > OFF_THE_GRID + PER_UNIT * torch.finfo(x.dtype).eps / 4:  # half a spacing below 1
        scale = f", or 2 * {name} - 1 if these are images in [0, 1]" * (low >= 0)
        raise ValueError(
            f"{name} must have values of bytes, byte / 127.5 - 1, for a discretized likelihood, "
            f"got some {off:.2f} of a step off: dsmooth.round_to_bytes({name}){scale}"
        )


def fourier_features(x: Tensor, octaves: int) -> Tensor:
    """Fourier features of pixels: (B, C, H, W) -> (B, 2 C octaves, H, W).

    For each colour and each octave k = 0, 1, ... the channels cos and sin of 2 pi 2^k n / 256, with
    n = 127.5 (x + 1) the byte of the pixel. Computed in float32 at least, returned in the
    dtype of x. Source: Kingma et al., Variational diffusion models (2021).
    """
    byte = byte_of(snap_half_precision(x))
    powers = 1 << torch.arange(octaves, device=x.device).view(-1, 1, 1)
    # Whole turns are removed first, since they would cost the angle precision.
    angle = 2 * math.pi * ((byte / 256).unsqueeze(2) * powers).remainder(1)
    return torch.stack([angle.cos(), angle.sin()], dim=3).flatten(1, 3).to(x.dtype)
