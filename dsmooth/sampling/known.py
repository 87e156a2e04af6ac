"""Images of which a part is known."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import SettingError
from ..nn.images import check_images, check_like, check_scale


@dataclass(frozen=True, eq=False)
class KnownPixels:
    """Images (n, C, H, W), 0 where no pixel is known; mask (n, H, W) bool, True where one is."""

    images: Tensor
    mask: Tensor

    @property
    def values(self) -> Tensor:
        """The pixels that are known: (number, C)."""
        return self.images.movedim(1, -1)[self.mask]

    def keep(self, x: Tensor, *, as_bytes: bool = False) -> Tensor:
        """x (n, C, H, W) with the known pixels put in, in new memory, contiguous.

        as_bytes: for a model that sees which byte a pixel is. Known pixels that are no bytes then
        raise ValueError.
        """
        images = self.images
        if images.dtype == torch.promote_types(x.dtype, torch.float32):
            images = images.to(x.dtype)  # rounded, where x has half precision
        check_like("known", images, x)
        if as_bytes:
            check_scale("known", self.values, as_bytes=True)
        return torch.where(self.mask[:, None], images, x).contiguous()


def known_pixels(known: Tensor, mask: Tensor, count: int, name: str = "known") -> KnownPixels:
    """The known pixels of `count` images, see `Choices`; an error calls the images `name`."""
    check_images(name, known)
    if not isinstance(mask, Tensor) or mask.dtype != torch.bool:
        kind = mask.dtype if isinstance(mask, Tensor) else f"a {type(mask).__name__}"
        raise TypeError(f"mask must be torch.bool, True where a pixel is known, got {kind}")
    if known.ndim != 4 or known.shape[0] not in (1, count):
        raise ValueError(
            f"{name} must have shape ({count} or 1, C, H, W), got {tuple(known.shape)}"
        )
    height, width = known.shape[2:]
    if mask.ndim != 3 or mask.shape[0] not in (1, count) or mask.shape[1:] != (height, width):
        raise ValueError(
            f"mask must have shape ({count} or 1, {height}, {width}), got {tuple(mask.shape)}"
        )
    if mask.device != known.device:
        raise ValueError(f"mask must be on {name}'s device {known.device}, got {mask.device}")
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
