"""Partially known images."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..fields import SettingError
from ..functional.checks import check_tensor
from ..nn.images import check_images, check_scale


@dataclass(frozen=True, eq=False)
class KnownPixels:
    """Images (n, C, H, W), 0 at unknown pixels; mask (n, H, W) bool, True at known pixels."""

    images: Tensor
    mask: Tensor

    @property
    def values(self) -> Tensor:
        """The known pixels: (number, C)."""
        return self.images.movedim(1, -1)[self.mask]

    def keep(self, x: Tensor, *, as_bytes: bool = False) -> Tensor:
        """A contiguous copy of x (n, C, H, W) with the known pixels inserted.

        as_bytes: for a model that depends on each pixel's byte: raises ValueError for known pixels
        that are not bytes.
        """
        images = self.images
        if images.dtype == torch.promote_types(x.dtype, torch.float32):
            images = images.to(x.dtype)  # rounded if x has half precision
        check_tensor("known", images, tuple(x.shape), x.device, (x.dtype,))
        if as_bytes:
            check_scale("known", self.values, as_bytes=True)
        return torch.where(self.mask[:, None], images, x).contiguous()


def known_pixels(known: Tensor, mask: Tensor, count: int, name: str = "known") -> KnownPixels:
    """The known pixels of `count` images (see `Choices`). name: of the images, for errors."""
    check_images(name, known)
    check_tensor(name, known, (1 if len(known) == 1 else count, "C", "H", "W"))
    mask = mask[None] if mask.ndim == 2 else mask
    shape = 1 if len(mask) == 1 else count, *known.shape[2:]
    check_tensor("mask", mask, shape, known.device, (torch.bool,))
    images = torch.where(mask[:, None], known.detach(), 0)
    if not images.isfinite().all():
        raise ValueError("known pixels must be finite, got a NaN or an infinity")
    return KnownPixels(images.expand(count, -1, -1, -1), mask.expand(count, -1, -1))


def keep_top(fraction: float, size: tuple[int, int]) -> Tensor:
    """The mask (1, H, W) of the first round(fraction * H) rows: a prefix in raster order.

    Raises ValueError for a fraction outside 0 .. 1.
    """
    if not 0 <= fraction <= 1:
        raise SettingError("keep_top", f"must lie in 0 .. 1, got {fraction}")
    height, width = size
    return (torch.arange(height) < round(fraction * height)).view(1, -1, 1).expand(1, -1, width)
