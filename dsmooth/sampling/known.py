"""Known pixels: a drawing keeps them and draws the rest."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class KnownPixels:
    """The pixels of n images that are given; see `known_pixels`.

    images: (n, C, H, W), 0 where a pixel is not known. mask: (n, H, W) bool, True where it is.
    """

    images: Tensor
    mask: Tensor

    def keep(self, x: Tensor) -> Tensor:
        """x (n, C, H, W) with the known pixels in their places, in new memory, contiguous."""
        if self.images.shape != x.shape:
            raise ValueError(
                f"known must have shape {tuple(x.shape)}, got {tuple(self.images.shape)}"
            )
        if self.images.dtype != x.dtype:
            raise TypeError(f"known must be {x.dtype}, got {self.images.dtype}")
        if self.images.device != x.device:
            raise ValueError(f"known must be on {x.device}, got {self.images.device}")
        return torch.where(self.mask[:, None], self.images, x).contiguous()

    def digest(self) -> str:
        """SHA-256 of the known pixels and their places."""
        digest = hashlib.sha256()
        for tensor in (self.mask, self.images.float()):
            digest.update(tensor.cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()


def known_pixels(known: Tensor | None, mask: Tensor | None, count: int) -> KnownPixels | None:
    """The known pixels of `count` images; None if neither argument is given, see `Choices`."""
    if known is None and mask is None:
        return None
    if known is None or mask is None:
        raise ValueError("known and mask must be given together")
    if mask.dtype != torch.bool:
        raise TypeError(f"mask must be torch.bool, True where a pixel is known, got {mask.dtype}")
    if not known.is_floating_point():
        raise TypeError(f"known must be floating point in [-1, 1], got {known.dtype}")
    if known.ndim != 4 or known.shape[0] not in (1, count):
        raise ValueError(f"known must have shape ({count} or 1, C, H, W), got {tuple(known.shape)}")
    if mask.ndim != 3 or mask.shape[0] not in (1, count) or mask.shape[1:] != known.shape[2:]:
        height, width = known.shape[2:]
        raise ValueError(
            f"mask must have shape ({count} or 1, {height}, {width}), got {tuple(mask.shape)}"
        )
    if mask.device != known.device:
        raise ValueError(f"mask must be on known's device {known.device}, got {mask.device}")
    images = torch.where(mask[:, None], known.detach(), 0)
    if not images.isfinite().all():
        raise ValueError("known pixels must be finite, got a NaN or an infinity")
    return KnownPixels(images.expand(count, -1, -1, -1), mask.expand(count, -1, -1))


def keep_top(fraction: float, size: tuple[int, int]) -> Tensor:
    """The mask (1, H, W) of the first round(fraction * H) rows: a prefix in raster order.

    Raises ValueError for a fraction outside 0 .. 1.
    """
    if not 0 <= fraction <= 1:
        raise ValueError(f"the fraction of known rows must lie in 0 .. 1, got {fraction}")
    height, width = size
    return (torch.arange(height) < round(fraction * height)).view(1, -1, 1).expand(1, -1, width)
