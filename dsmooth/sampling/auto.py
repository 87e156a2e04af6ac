"""The fastest sampler there is for a model where it runs."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from .._extension import cuda_obstacle, is_available
from ..nn import PixelCNNpp
from .cached import CachedSampler
from .sequential import sequential_sample


def has_cached_sampler(model: PixelCNNpp) -> bool:
    """Whether the extension can sample `model`: float32 weights, and code for where they lie."""
    parameter = model.head.bias
    if parameter.dtype != torch.float32 or not is_available():
        return False
    device = parameter.device.type
    return device == "cpu" or (device == "cuda" and cuda_obstacle() is None)


def sample_images(
    model: PixelCNNpp,
    n: int,
    *,
    height: int,
    width: int,
    seed: int = 0,
    first_index: int = 0,
    context: Tensor | None = None,
    temperature: float = 1.0,
    threads: int | None = None,
    progress: Callable[[float], None] | None = None,
) -> Tensor:
    """Draw n images: `CachedSampler` where it runs, else `sequential_sample`.

    On a CUDA device the cached sampler computes in bfloat16, on the CPU in float32. Arguments,
    result and errors are those of `CachedSampler.sample`; weights are packed anew at
    each call, which takes milliseconds for a small network: keep a `CachedSampler` to draw in many
    small calls. progress is not called by the sequential sampler.
    """
    if not has_cached_sampler(model):
        before = torch.get_num_threads()
        torch.set_num_threads(threads or before)
        try:
            return sequential_sample(
                model,
                n,
                height=height,
                width=width,
                seed=seed,
                first_index=first_index,
                context=context,
                temperature=temperature,
            )
        finally:
            torch.set_num_threads(before)
    dtype = torch.bfloat16 if model.head.bias.device.type == "cuda" else torch.float32
    return CachedSampler(model, dtype).sample(
        n, height, width, seed, first_index, context, temperature, threads, progress
    )
