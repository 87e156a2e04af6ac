"""The specification of sampling: one forward of the network per pixel."""

from __future__ import annotations

import copy

import torch
from torch import Tensor

from ..functional import logistic_mixture_sample
from ..machine import check_memory
from ..nn import PixelCNNpp
from ..nn.pixelcnnpp import Encoded
from ..philox import Stream, image_words, to_uniform
from .draw import Draw, Label, Progress, check_size, chosen_seed
from .known import known_pixels


def sequential_sample(
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
    known: Tensor | None = None,
    mask: Tensor | None = None,
) -> Tensor:
    """Draw n images pixel by pixel in raster order, each from one forward of the network.

    The noise of pixel (r, c) of image i is Philox4x32-10 with key `seed` and counter
    (r * width + c, first_index + i low, high, stream), stream 0 without context and 1 with one. So
    an image depends on its index and on the seed. The batch that it is drawn in matters to the
    rounding of the forward alone. The model samples in evaluation mode, without dropout.

    context: (n, C, height, width) for a conditioned model. label: for a model with classes, one for
    all images or one for each (see `Draw`). temperature: > 0; divides the logits and multiplies the
    scales. known: (n or 1, C, height, width), images whose pixels where mask, (n or 1, height,
    width) bool, is True are kept; each of the others is drawn given all pixels before it, with its
    own noise. If the known pixels come first in raster order this is the model's conditional
    distribution; else later known pixels do not influence earlier ones. Returns (n, C, height,
    width) in the model's dtype and device; what is drawn is unclamped for a continuous likelihood,
    one of the 256 levels for a discretized one.

    Raises ValueError for a count, size, seed or temperature out of range, and for a context or
    known pixels that do not fit. Source: docs/math.md, section 3.
    """
    pixels = known_pixels(known, mask, n)
    draw = Draw(
        n, chosen_seed(seed), first_index, temperature=temperature, known=pixels, label=label
    )
    return draw_sequentially(model, draw, (height, width), context)


@torch.no_grad()
def draw_sequentially(
    model: PixelCNNpp,
    draw: Draw,
    size: tuple[int, int],
    context: Tensor | None = None,
    progress: Progress | None = None,
) -> Tensor:
    """Sample a draw as `sequential_sample` does. progress: called after each row."""
    check_size(size)
    height, width = size
    check_memory((draw.count, model.config.image_channels, *size))
    x = model.head.bias.new_zeros(draw.count, model.config.image_channels, height, width)
    mask = torch.zeros_like(x[:, :1], dtype=torch.bool)
    if draw.known is not None:
        x, mask = draw.known.keep(x), draw.known.mask[:, None]
    complete = mask.all(0)[0].tolist()
    uniforms = pixel_uniforms(model, draw, size)
    model = in_evaluation(model)
    encoded = model.encode_context(x, context, label_of(model, draw))
    for r in range(height):
        # Rows below r cannot matter; what remains must stay a multiple of 4.
        rows = r // 4 * 4 + 4
        visible = select_context(encoded, rows)
        for c in range(width):
            if complete[r][c]:
                continue
            params = model.decode(x[:, :, :rows], visible)
            here = (..., slice(r, r + 1), slice(c, c + 1))
            drawn = logistic_mixture_sample(
                params[here],
                uniforms[here],
                x.shape[1],
                temperature=draw.temperature,
                **model.config.mixture,
            )
            x[here] = torch.where(mask[here], x[here], drawn)
        if progress is not None:
            progress((r + 1) / height)
    return x


def pixel_uniforms(model: PixelCNNpp, draw: Draw, size: tuple[int, int]) -> Tensor:
    """The noise of a draw: (count, 4, H, W) in the model's dtype and device."""
    parameter = model.head.bias
    stream = Stream.SAMPLE if model.config.conditioning == "none" else Stream.SAMPLE_CONDITIONED
    words = image_words(
        draw.count,
        size[0] * size[1],
        seed=draw.seed,
        first_index=draw.first_index,
        stream=stream,
        device=parameter.device,
    )
    return to_uniform(words).to(parameter.dtype).view(-1, *size, 4).permute(0, 3, 1, 2)


def in_evaluation(model: PixelCNNpp) -> PixelCNNpp:
    """The same weights in evaluation mode; another thread may go on training `model`."""
    if not model.training:
        return model
    shared = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    return copy.deepcopy(model, shared).eval()


def select_context(encoded: Encoded, rows: int, images: Tensor | None = None) -> Encoded:
    """The part of an encoded context that `decode` needs for the first rows of some images."""
    stacked, streams, vector = encoded
    if images is not None:
        stacked, vector = (None if e is None else e[images] for e in (stacked, vector))
    if streams is not None:
        u, ul = (e[:, :, :rows] if images is None else e[images, :, :rows] for e in streams)
        streams = u, ul
    return Encoded(stacked, streams, vector)


def label_of(model: PixelCNNpp, draw: Draw) -> Tensor | None:
    """The labels of a draw where `model` is, None for a model without classes.

    Raises ValueError for labels that are missing or not among its classes.
    """
    return draw.labels(model.config.condition_size, model.head.bias.device)
