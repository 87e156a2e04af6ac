"""Operands and settings of a gated resnet, taps, and images as rows. Needs no Triton."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor

Shift = Literal["down", "down_right", "none"]
MAX_PIXELS = 2**31 - 2**10  # positions are 32-bit; the last block may be partly beyond the end
ROW_BLOCK = 128  # the largest number of rows that a program multiplies; smaller ones divide it


class Operands(NamedTuple):
    """The inputs of a gated resnet, in the order of the field table. Absent ones are None."""

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

    @property
    def skips(self) -> list[Tensor]:
        """The skips, two at most."""
        return [skip for skip in (self.skip, self.skip_2) if skip is not None]

    @property
    def skip_channels(self) -> tuple[int, ...]:
        return tuple([skip.shape[1] for skip in self.skips])

    @property
    def weights(self) -> list[Tensor]:
        """conv_in, conv_out and, with a skip, nin_skip."""
        nin = [] if self.nin_skip is None else [self.nin_skip]
        return [self.conv_in, self.conv_out, *nin]

    @property
    def gains(self) -> list[Tensor]:
        """One for each of the weights, or none."""
        gains = (self.gain_in, self.gain_out, self.gain_nin)
        return [gain for gain in gains if gain is not None]


class Settings(NamedTuple):
    """The arguments of `functional.gated_resnet` that are no tensors."""

    shift: Shift
    dropout: float = 0.0
    layer: int = 0
    first_image: int = 0

    @property
    def keep_from(self) -> int:
        """The least n = word >> 9 that is kept. Its uniform (n + 1/2) 2**-23 is >= dropout."""
        return math.ceil(self.dropout * 2**23 - 0.5)

    @property
    def scale(self) -> float:
        """The factor of kept elements."""
        return 1 / (1 - self.dropout)


class Taps(NamedTuple):
    """Taps of a (kh, kw) kernel: tap (i, j) reads at (row, col) + (i - top, j - left)."""

    kh: int
    kw: int
    top: int
    left: int

    @classmethod
    def of(cls, weight: Tensor, shift: str) -> Taps:
        """The taps of a shifted convolution by weight (D, C, kh, kw)."""
        kh, kw = weight.shape[2:]
        top = (kh - 1) // 2 if shift == "none" else kh - 1
        return cls(kh, kw, top, kw - 1 if shift == "down_right" else (kw - 1) // 2)

    def adjoint(self) -> Taps:
        """Taps of the adjoint, whose kernel is turned around."""
        return Taps(self.kh, self.kw, self.kh - 1 - self.top, self.kw - 1 - self.left)


POINT = Taps(1, 1, 0, 0)  # of a 1x1 convolution


class Geometry(NamedTuple):
    """Constants of a matmul, one constexpr of a kernel.

    above, before: of `PaddedImages`; acc: dtype of the accumulators; the rest as in
    `tilings.MatmulTiling`.
    """

    taps: Taps
    above: int
    before: int
    acc: object
    precision: Literal["ieee", "tf32"]
    block_p: int
    n1: int
    n2: int
    block_k: int


class PaddedImages(NamedTuple):
    """Images as rows of a matmul: pixels in order, with zeros between them.

    Each image has `above` rows of zeros above it, each of its rows `before` zeros before it: image
    b's pixel (r, c) is row ((height + above) b + r + above) pitch + c + before. There are as many
    zeros as the farthest tap reaches, and they serve both sides: right of a row are the next row's
    zeros. So each tap reads a constant distance away, and a zero outside the image.
    """

    batch: int
    height: int
    width: int
    above: int
    before: int

    @classmethod
    def of(cls, size: Sequence[int], taps: Taps) -> PaddedImages:
        """The rows of a (B, C, H, W) tensor. Raises ValueError for more than 32 bits can number."""
        batch, _, height, width = size
        above = max(taps.top, taps.kh - 1 - taps.top)
        before = max(taps.left, taps.kw - 1 - taps.left)
        rows = cls(batch, height, width, above, before)
        if rows.length > MAX_PIXELS:
            raise ValueError(
                f"an image tensor must have at most {MAX_PIXELS} pixels with its padding, "
                f"got {rows.length}"
            )
        return rows

    @property
    def pitch(self) -> int:
        """Rows from a pixel to the one below."""
        return self.width + self.before

    @property
    def margin(self) -> int:
        """The farthest that a tap reads; as many rows lie before the first and after the last."""
        return self.above * self.pitch + self.before

    @property
    def pixels(self) -> int:
        return self.batch * self.height * self.width

    @property
    def total(self) -> int:
        """All rows up to the last pixel and a margin, in whole blocks."""
        last = self.batch * (self.height + self.above) * self.pitch + self.margin
        return cdiv(last, ROW_BLOCK) * ROW_BLOCK

    @property
    def length(self) -> int:
        """All rows with a margin on both sides."""
        return self.total + 2 * self.margin

    @property
    def size(self) -> tuple[int, int, int]:
        return self.batch, self.height, self.width

    def empty(self, like: Tensor, channels: int) -> Tensor:
        """Uninitialised room (1, margin + total + margin, channels) of the dtype of `like`."""
        return torch.empty((1, self.length, channels), dtype=like.dtype, device=like.device)

    def first(self, room: Tensor, plane: int = 0) -> Tensor:
        """A plane of room (planes, margin + total + margin, channels), from row 0 on."""
        return room[plane, self.margin :]


def cdiv(a: int, b: int) -> int:
    """a / b, rounded up; Triton's own takes 50 times as long on the host."""
    return -(-a // b)


def channels_last(image: Tensor) -> Tensor:
    """The image itself if its memory order is channels_last, else a copy that is."""
    return image.contiguous(memory_format=torch.channels_last)


def empty_channels_last(like: Tensor, channels: int) -> Tensor:
    """Uninitialised, with the batch, extent, dtype and device of `like`."""
    return torch.empty(
        (like.shape[0], channels, *like.shape[2:]),
        dtype=like.dtype,
        device=like.device,
        memory_format=torch.channels_last,
    )


def empty_weight(like: Tensor) -> Tensor:
    """Uninitialised, with the strides of `like`, or channels_last where that has gaps."""
    last = torch.channels_last  # DistributedDataParallel compares strides, also of single rows
    kept = like.ndim != 4 or like.is_contiguous() or like.is_contiguous(memory_format=last)
    return torch.empty_like(like, memory_format=torch.preserve_format if kept else last)


def planes_of(skip_channels: Sequence[int], filters: int) -> int:
    """How many planes of `filters` channels the skips of a gated resnet take."""
    return sum(-(-channels // filters) for channels in skip_channels)


def packed_sizes(operands: Operands, adjoint: bool) -> list[int]:
    """Sizes of the parts of the packed weights: (F, (T + planes) 2F), conv_in and then the skips';
    (2F, T 2F), conv_out; the adjoints (2F, T 2F) of conv_out, (2F, T F) of conv_in and, a plane,
    (2F, F) of the skips'."""
    f, _, kh, kw = operands.conv_in.shape
    t, planes = kh * kw, planes_of(operands.skip_channels, f)
    forward = [2 * f * f * (t + planes), 4 * f * f * t]
    return [*forward, 4 * f * f * t, 2 * f * f * t, 2 * f * f * planes] if adjoint else forward
