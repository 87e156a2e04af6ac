"""The fastest sampler there is for a model where it runs."""

from __future__ import annotations

from functools import cached_property

import torch
from torch import Tensor

from .._extension import cuda_obstacle, is_available
from ..nn import PixelCNNpp
from .cached import CachedSampler
from .draw import Draw, Progress
from .sequential import draw_sequentially


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
    progress: Progress | None = None,
) -> Tensor:
    """Draw n images: `CachedSampler` where it runs, else `sequential_sample`.

    On a CUDA device the cached sampler computes in bfloat16, on the CPU in float32. Arguments,
    result and errors are those of `CachedSampler.sample`; weights are packed anew at
    each call, which takes milliseconds for a small network: keep a `CachedSampler` to draw in many
    small calls.
    """
    draw = Draw(n, seed, first_index, temperature=temperature, threads=threads)
    return NetworkSampler(model, (height, width)).draw(draw, progress, context)


class NetworkSampler:
    """Draws the parts of one drawing: the network is packed once, when it is first needed.

    Later changes of the weights may not reach it, so it must not outlive the drawing.
    """

    def __init__(self, model: PixelCNNpp, size: tuple[int, int]) -> None:
        self.model = model
        self.size = size

    @cached_property
    def _cached(self) -> CachedSampler | None:
        if not has_cached_sampler(self.model):
            return None
        on_cuda = self.model.head.bias.device.type == "cuda"
        return CachedSampler(self.model, torch.bfloat16 if on_cuda else torch.float32)

    def draw(
        self, draw: Draw, progress: Progress | None = None, context: Tensor | None = None
    ) -> Tensor:
        """Draw a part of the drawing, as `sample_images` does."""
        if self._cached is not None:
            return self._cached.draw(draw, self.size, context, progress)
        before = torch.get_num_threads()
        torch.set_num_threads(draw.threads or before)
        try:
            return draw_sequentially(self.model, draw, self.size, context, progress)
        finally:
            torch.set_num_threads(before)
