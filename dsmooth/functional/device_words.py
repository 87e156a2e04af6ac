"""Random words of images (`dsmooth.philox`) on any device; on CUDA one kernel computes them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..philox import image_words
from .dispatch import resolve_impl, transform_obstacle, triton_obstacle


def device_words(
    n_images: int, n_counters: int, *, device: torch.device | str = "cpu", **counter: Any
) -> Tensor:
    """`philox.image_words`, which explains `counter`: (n_images, n_counters, 4) int64."""
    device, impl = torch.device(device), resolve_impl("auto")
    wanted = impl == "triton" or (impl == "auto" and device.type == "cuda")
    if not wanted or transform_obstacle() or triton_obstacle(device, matmul=False):
        return image_words(n_images, n_counters, device=device, **counter)
    from ..kernels import philox as kernels

    return kernels.image_words(n_images, n_counters, device=device, **counter)
