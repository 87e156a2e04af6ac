"""Which inputs an output of a shifted convolution reads: its kernel's taps, and the padding."""

from __future__ import annotations

from typing import Literal, get_args

from torch import Tensor

from ..kernels.geometry import Taps

Shift = Literal["down", "down_right", "none"]
SHIFTS = get_args(Shift)


def padding_of(kh: int, kw: int, shift: str) -> tuple[int, int, int, int]:
    """Columns padded left and right, rows padded on top and at the bottom.

    Raises ValueError unless the shift is one and fits the kernel.
    """
    check_size(kh, kw, shift)
    if shift == "none":
        return (kw - 1) // 2, (kw - 1) // 2, (kh - 1) // 2, (kh - 1) // 2
    left, right = (kw - 1, 0) if shift == "down_right" else ((kw - 1) // 2, (kw - 1) // 2)
    return left, right, kh - 1, 0


def taps_of(weight: Tensor, shift: str) -> Taps:
    """The taps of a shifted convolution by weight (D, C, kh, kw).

    Raises ValueError as `check_kernel` does.
    """
    check_kernel(weight, shift)
    kh, kw = weight.shape[2:]
    left, _, top, _ = padding_of(kh, kw, shift)
    return Taps(kh, kw, top, left)


def check_kernel(weight: Tensor, shift: str, name: str = "weight") -> None:
    """Raises ValueError unless the shift is one and fits the kernel of `weight` (D, C, kh, kw)."""
    if weight.ndim != 4:
        check_size(1, 1, shift)
        raise ValueError(f"{name} must have 4 dimensions, got shape {tuple(weight.shape)}")
    kh, kw = weight.shape[2:]
    check_size(kh, kw, shift)


def check_size(kh: int, kw: int, shift: str) -> None:
    """Raises ValueError unless the shift is one and fits a kernel of kh x kw."""
    if shift not in SHIFTS:
        raise ValueError(f"shift must be one of {', '.join(SHIFTS)}, got {shift!r}")
    if kh < 1 or kw < 1:
        raise ValueError(f"a kernel must have rows and columns, got {kh}x{kw}")
    if (shift != "down_right" and kw % 2 == 0) or (shift == "none" and kh % 2 == 0):
        raise ValueError(f"a kernel of {kh}x{kw} has no centre for shift={shift!r}")
