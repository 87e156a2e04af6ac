"""Operands and settings of a gated resnet, taps, and images as rows. Does not import Triton."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor

Shift = Literal["down", "down_right", "none"]
MAX_PIXELS = 2**31 - 2**10  # positions are 32-bit; the last block may extend beyond the end
ROW_BLOCK = 128  # largest number of rows per program; smaller block sizes divide it


class Operands(NamedTuple):
    """The inputs of a gated resnet, in the order of the field table; None if absent."""

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
        """The skips, at most two."""
        return [skip for skip in (self.skip, self.skip_2) if skip is not None]

    @property
    def channels(self) -> tuple[int, int, int]:
        """Of x, skip and skip_2; 0 if absent."""
        first, second = (0 if skip is None else skip.shape[1] for skip in (self.skip, self.skip_2))
        return self.x.shape[1], first, second

    @property
    def planes(self) -> int:
        """Number of planes of F channels that hold the skips."""
        f, first, second = self.channels
        return cdiv(first, f) + cdiv(second, f)

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
    """The arguments of `functional.gated_resnet` other than tensors."""

    shift: Shift
    dropout: float = 0.0
    layer: int = 0
    first_image: int = 0

    @property
    def keep_from(self) -> int:
        """The least n = word >> 9 that is kept: its uniform (n + 1/2) 2**-23 is >= dropout."""
        return math.ceil(self.dropout * 2**23 - 0.5)

    @property
    def scale(self) -> float:
        """The factor by which dropout multiplies kept elements."""
        return 1 / (1 - self.dropout)


class Taps(NamedTuple):
    """Taps of a (kh, kw) kernel: tap (i, j) reads at (row, col) + (i - top, j - left)."""

    kh: int
    kw: int
    top: int
    left: int

    @classmethod
    def of(cls, weight: Tensor, shift: str) -> Taps:
        """The taps of a shifted convolution with weight (D, C, kh, kw)."""
        kh, kw = weight.shape[2:]
        top = (kh - 1) // 2 if shift == "none" else kh - 1
        return cls(kh, kw, top, kw - 1 if shift == "down_right" else (kw - 1) // 2)

    def adjoint(self) -> Taps:
        """Taps of the adjoint, whose kernel is flipped."""
        return Taps(self.kh, self.kw, self.kh - 1 - self.top, self.kw - 1 - self.left)


POINT = Taps(1, 1, 0, 0)  # of a 1x1 convolution


class Geometry(NamedTuple):
    """Constants of a matmul, passed to a kernel as one constexpr.

    above, before: see `PaddedImages`; acc: dtype of the accumulators; other fields: see
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

    Each image has `above` rows of zeros above it, and each of its rows has `before` zeros before
    it: pixel (r, c) of image b is row ((height + above) b + r + above) pitch + c + before. The
    padding is as wide as the farthest tap reaches. It serves both sides: the zeros to the right of
    a row are those before the next row. So each tap reads at a constant distance, and reads zero
    outside the image.
    """

    batch: int
    height: int
    width: int
    above: int
    before: int

    @classmethod
    def of(cls, size: Sequence[int], taps: Taps) -> PaddedImages:
        """The rows of a (B, C, H, W) tensor. Raises ValueError for more than MAX_PIXELS rows."""
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
        """Distance in rows from a pixel to the pixel below."""
        return self.width + self.before

    @property
    def margin(self) -> int:
        """The largest distance of a tap: the number of rows before the first and after the last."""
        return self.above * self.pitch + self.before

    @property
    def pixels(self) -> int:
        return self.batch * self.height * self.width

    @property
    def total(self) -> int:
        """Number of rows up to the last pixel and a margin, rounded up to whole blocks."""
        last = self.batch * (self.height + self.above) * self.pitch + self.margin
        return cdiv(last, ROW_BLOCK) * ROW_BLOCK

    @property
    def length(self) -> int:
        """Number of rows with a margin on both sides."""
        return self.total + 2 * self.margin

    @property
    def size(self) -> tuple[int, int, int]:
        return self.batch, self.height, self.width

    def empty(
        self, like: Tensor, channels: int, *, planes: int = 1, dtype: torch.dtype | None = None
    ) -> Tensor:
        """Uninitialised rows (planes, total + margin, channels) of the dtype of `like`; at least a
        margin lies before the first one, whose address is a multiple of 16."""
        before = cdiv(self.margin, 16) * 16
        size = planes, before + self.total + self.margin, channels
        return torch.empty(size, dtype=dtype or like.dtype, device=like.device)[:, before:]


def cdiv(a: int, b: int) -> int:
    """a / b, rounded up; Triton's own takes 50 times as long on the host."""
    return -(-a // b)


def channels_last(image: Tensor) -> Tensor:
    """The image in channels_last memory order, copied only if needed."""
    return image.contiguous(memory_format=torch.channels_last)


def empty_channels_last(like: Tensor, channels: int) -> Tensor:
    """An uninitialised image with the batch, height, width, dtype and device of `like`."""
    return torch.empty(
        (like.shape[0], channels, *like.shape[2:]),
        dtype=like.dtype,
        device=like.device,
        memory_format=torch.channels_last,
    )


def empty_weight(like: Tensor) -> Tensor:
    """An uninitialised tensor with the strides of `like`, or channels_last if `like` has gaps."""
    last = torch.channels_last  # DistributedDataParallel also compares strides of size-1 dimensions
    kept = like.ndim != 4 or like.is_contiguous() or like.is_contiguous(memory_format=last)
    return torch.empty_like(like, memory_format=torch.preserve_format if kept else last)


def packed_sizes(operands: Operands, adjoint: bool) -> list[int]:
    """Sizes of the parts of the packed weights: (F, (T + planes) 2F) for conv_in, then nin_skip;
    (2F, T 2F) for conv_out; the adjoints (2F, T F) of conv_in, (2F, T 2F) of conv_out and, per
    plane, (2F, F) of nin_skip."""
    f, _, kh, kw = operands.conv_in.shape
    conv, nin = 2 * f * f * kh * kw, 2 * f * f * operands.planes
    return [conv + nin, 2 * conv, *[conv, 2 * conv, nin] * adjoint]
