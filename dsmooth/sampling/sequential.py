"""Sampling by one forward pass per pixel: the specification of all samplers."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor

from ..functional import logistic_mixture_sample
from ..functional.logistic_mixture import extrapolate
from ..nn import PixelCNNpp
from ..nn.weights import in_evaluation
from ..philox import Stream, image_words, to_uniform
from ..progress import advance_to
from .draw import Draw


class ForwardPasses:
    """A network that draws pixel by pixel in raster order, without dropout.

    Source: docs/math.md, section 3.
    """

    def __init__(self, model: PixelCNNpp) -> None:
        self.model, self.config = in_evaluation(model), model.config
        self.device, self.dtype, self.image_dtype = model.device, model.dtype, model.dtype

    @torch.no_grad()
    def run(self, draw: Draw) -> Tensor:
        """The images of a draw: (n, C, H, W) in the model's dtype and device."""
        config, context, known = self.config, draw.x_tilde, draw.known
        n, (channels, height, width) = len(draw.indices), draw.shape
        x = torch.zeros(n, *draw.shape, dtype=self.image_dtype, device=self.device)
        mask = torch.zeros_like(x[:, :1], dtype=torch.bool)
        if known is not None:
            x, mask = known.keep(x), known.mask[:, None]
        stream = Stream.SAMPLE if config.conditioning == "none" else Stream.SAMPLE_CONDITIONED
        start = {"seed": draw.seed, "first_index": draw.indices.start}
        words = image_words(n, height * width, **start, stream=stream, device=x.device)
        uniforms = to_uniform(words).to(x.dtype).view(n, height, width, 4).permute(0, 3, 1, 2)
        passes = draw.passes
        for r, c in itertools.product(range(height), range(width)):
            pixel = (..., slice(r, r + 1), slice(c, c + 1))
            seen = x[:, :, : (r + 4) // 4 * 4] if context is None else x  # later rows do not matter
            params, *without_class = (self.model(seen, context, y)[pixel] for y in passes)
            for other in without_class:
                params = extrapolate(other, params, 1 + draw.guidance, channels, config.n_atoms)
            drawn = logistic_mixture_sample(
                params,
                uniforms[pixel],
                channels,
                temperature=draw.temperature,
                **config.mixture,
            )
            x[pixel] = torch.where(mask[pixel], x[pixel], drawn.to(x.dtype))
            if c + 1 == width:
                advance_to((r + 1) / height)
        return x
