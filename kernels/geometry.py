"""A gated resnet's tensors, taps of its convolutions, and images as rows of a matmul."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor

MAX_PIXELS = 2**31 - 2**10  # positions are 32-bit; the last block may extend beyond the end
ROW_BLOCK = 128  # largest number of rows per program; smaller block sizes divide it


class Weight(NamedTuple):
    """A convolution with weight norm, or without if gain is None; or its gradients."""

    v: Tensor  # (D, C, kh, kw)
    bias: Tensor  # (D,)
    gain: Tensor | None  # (D,)


class Tensors(NamedTuple):
    """The tensors of a gated resnet, or their gradients."""

    images: tuple[Tensor, ...]  # x (B, F, H, W), then one or two skips or none; channels_last
    weights: tuple[Weight, ...]  # conv_in, conv_out, with skips nin_skip; () for no gradients
    image_bias: Tensor | None  # (B, 2F)

    @property
    def channels(self) -> tuple[int, ...]:
        """Of each image."""
        return tuple([image.shape[1] for image in self.images])

    @property
    def planes(self) -> int:
        """Number of planes of F channels that hold the skips."""
        f, *skips = self.channels
        return sum(cdiv(channels, f) for channels in skips)


class Dropout(NamedTuple):
    """Dropout, of elements of `scale`, keeps the words >> 9 that are at least keep_from.

    seed: of Philox, int64, or None without dropout. first_image: index of the first image in the
    batch whose mask is shared.
    """

    seed: Tensor | None
    layer: int
    first_image: int
    keep_from: int
    scale: float


class Taps(NamedTuple):
    """Taps of a (kh, kw) kernel: tap (i, j) reads at (row, col) + (i - top, j - left)."""

    kh: int
    kw: int
    top: int
    left: int

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


def packed_sizes(tensors: Tensors, adjoint: bool) -> list[int]:
    """Sizes of the parts of the packed weights: (F, (T + planes) 2F) for conv_in, then nin_skip;
    (2F, T 2F) for conv_out; the adjoints (2F, T F) of conv_in, (2F, T 2F) of conv_out and, per
    plane, (2F, F) of nin_skip."""
    f, _, kh, kw = tensors.weights[0].v.shape
    conv, nin = 2 * f * f * kh * kw, 2 * f * f * tensors.planes
    return [conv + nin, 2 * conv, *[conv, 2 * conv, nin] * adjoint]
