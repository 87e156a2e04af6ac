"""Random words of images (`dsmooth.philox`); on CUDA one kernel computes the same words."""

from __future__ import annotations

import torch
from torch import Tensor

from .. import philox
from ..philox import Stream, seed_words, stream_word, whole_index
from .dispatch import resolve_impl, transform_obstacle, triton_obstacle


def image_words(
    n_images: int,
    n_counters: int,
    *,
    seed: int | Tensor,
    first_index: int | Tensor = 0,
    stream: Stream,
    repeat: int = 0,
    device: torch.device | str = "cpu",
) -> Tensor:
    """`philox.image_words`: (n_images, n_counters, 4) int64."""
    device, impl = torch.device(device), resolve_impl("auto")
    wanted = impl == "triton" or (impl == "auto" and device.type == "cuda")
    if not wanted or transform_obstacle() or triton_obstacle(device, matmul=False):
        return philox.image_words(
            n_images, n_counters, seed=seed, first_index=first_index, stream=stream, repeat=repeat,
            device=device,
        )  # fmt: skip
    from ..kernels import philox as kernels

    if not isinstance(seed, Tensor):
        seed_words(seed)  # refuses numbers out of range
    if not isinstance(first_index, Tensor):
        index = whole_index(first_index, n_images)
        first_index = torch.full((), index, dtype=torch.int64, device=device)
    return kernels.image_words(n_images, n_counters, seed, first_index, stream_word(stream, repeat))
