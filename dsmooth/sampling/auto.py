"""The fastest sampler there is for a model where it runs."""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

from .._extension import cuda_obstacle, is_available, unavailable_reason
from ..config import Precision
from ..nn import PixelCNNpp
from .cached import CachedSampler
from .draw import Draw, Label, Progress, chosen_seed
from .known import known_pixels
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
    seed: int | None = 0,
    first_index: int = 0,
    context: Tensor | None = None,
    label: Label = None,
    temperature: float = 1.0,
    threads: int | None = None,
    precision: Precision = "auto",
    progress: Progress | None = None,
    known: Tensor | None = None,
    mask: Tensor | None = None,
) -> Tensor:
    """Draw n images: `CachedSampler` where it runs, else `sequential_sample`.

    precision: of the cached sampler; "auto" is bfloat16 on a CUDA device, float32 on the CPU. Other
    arguments, result and errors are those of `CachedSampler.sample`; weights are packed anew at
    each call, which takes milliseconds for a small network: keep a `CachedSampler` to draw in many
    small calls.
    """
    draw = Draw(
        n,
        chosen_seed(seed),
        first_index,
        temperature=temperature,
        threads=threads,
        precision=precision,
        known=known_pixels(known, mask, n),
        label=label,
    )
    return NetworkSampler(model, (height, width)).draw(draw, progress, context)


def resolved_precision(precision: Precision, device: torch.device) -> Precision:
    """What the cached sampler computes in on `device`, "auto" resolved."""
    if precision != "auto":
        return precision
    return "bfloat16" if device.type == "cuda" else "float32"


class NetworkSampler:
    """Draws the parts of one drawing: the network is packed once, when it is first needed.

    Later changes of the weights may not reach it, so it must not outlive the drawing.
    """

    def __init__(self, model: PixelCNNpp, size: tuple[int, int]) -> None:
        self.model = model
        self.size = size
        self._cached = cache(self._pack)

    def _pack(self, precision: Precision) -> CachedSampler | None:
        if has_cached_sampler(self.model):
            resolved = resolved_precision(precision, self.model.head.bias.device)
            return CachedSampler(self.model, getattr(torch, resolved))
        if precision == "bfloat16":
            reason = unavailable_reason() or cuda_obstacle() or "the weights are not float32"
            raise ValueError(f"precision bfloat16 needs the cached sampler: {reason}")
        return None

    def draw(
        self, draw: Draw, progress: Progress | None = None, context: Tensor | None = None
    ) -> Tensor:
        """Draw a part of the drawing, as `sample_images` does.

        Raises ValueError for precision bfloat16 where the cached sampler cannot run.
        """
        cached = self._cached(draw.precision)
        if cached is not None:
            return cached.draw(draw, self.size, context, progress)
        before = torch.get_num_threads()
        torch.set_num_threads(draw.threads or before)
        try:
            return draw_sequentially(self.model, draw, self.size, context, progress)
        finally:
            torch.set_num_threads(before)
