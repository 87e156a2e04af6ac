"""Sampling by one forward pass per pixel: the specification of all samplers."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor
from typing_extensions import Unpack

from ..functional import logistic_mixture_sample
from ..functional.logistic_mixture import extrapolate
from ..nn import PixelCNNpp
from ..nn.weights import in_evaluation
from ..philox import Stream, image_words, to_uniform
from ..progress import advance_to
from .request import Choices, Request, checked_shape


def sequential_sample(
    model: PixelCNNpp,
    n: int,
    *,
    height: int,
    width: int,
    context: Tensor | None = None,
    **choices: Unpack[Choices],
) -> Tensor:
    """Draw n images pixel by pixel in raster order, with one forward pass per pixel.

    The noise of pixel (r, c) of image i is Philox4x32-10 with key `seed` and counter
    (r * width + c, first_index + i low, high, stream), stream 0 without context and 1 with one. So
    an image depends only on its index and the seed, up to the rounding of the forward pass, which
    the batch may change. The model samples in evaluation mode, without dropout. It may be of a
    subclass, or have hooks and layers of its own.

    context: (n, C, height, width) for a conditioned model. choices: see `Choices`.
    Returns (n, C, height, width) in the model's dtype and device; drawn pixels are unclamped for a
    continuous likelihood, the value of a byte for a discretized one. Raises ValueError for
    arguments that are out of range or do not fit. Source: docs/math.md, section 3.
    """
    return draw_sequentially(model, Request.make(n, choices), (height, width), context)


@torch.no_grad()
def draw_sequentially(
    model: PixelCNNpp,
    request: Request,
    size: tuple[int, int],
    context: Tensor | None = None,
) -> Tensor:
    """Draw a request like `sequential_sample`."""
    config, like = model.config, model.head.bias
    x = like.new_zeros(checked_shape(request.count, config.image_channels, *size))
    mask = torch.zeros_like(x[:, :1], dtype=torch.bool)
    if request.known is not None:
        x = request.known.keep(x, as_bytes=config.fourier_features > 0)
        mask = request.known.mask[:, None]
    stream = Stream.SAMPLE if config.conditioning == "none" else Stream.SAMPLE_CONDITIONED
    (height, width), start = size, {"seed": request.seed, "first_index": request.first_index}
    words = image_words(len(x), height * width, **start, stream=stream, device=x.device)
    uniforms = to_uniform(words).to(x.dtype).view(-1, *size, 4).permute(0, 3, 1, 2)
    labels, model = request.passes(config, like), in_evaluation(model)
    for r, c in itertools.product(range(height), range(width)):
        pixel = (..., slice(r, r + 1), slice(c, c + 1))
        seen = x[:, :, : (r + 4) // 4 * 4] if context is None else x  # later rows do not matter
        params, *without_class = (model(seen, context, label)[pixel] for label in labels)
        for other in without_class:
            weight, n_atoms = 1 + request.guidance, config.n_atoms
            params = extrapolate(other, params, weight, x.shape[1], n_atoms)
        drawn = logistic_mixture_sample(
            params,
            uniforms[pixel],
            x.shape[1],
            temperature=request.temperature,
            **config.mixture,
        )
        x[pixel] = torch.where(mask[pixel], x[pixel], drawn.to(x.dtype))
        if c + 1 == width:
            advance_to((r + 1) / height)
    return x
