"""The specification of sampling: one forward of the network per pixel."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..functional import logistic_mixture_sample
from ..machine import check_memory
from ..nn import PixelCNNpp
from ..nn.pixelcnnpp import Encoded
from ..philox import Stream, image_words, to_uniform
from .request import Choices, Progress, Request, check_size

if TYPE_CHECKING:
    from typing_extensions import Unpack


def sequential_sample(
    model: PixelCNNpp,
    n: int,
    *,
    height: int,
    width: int,
    context: Tensor | None = None,
    **choices: Unpack[Choices],
) -> Tensor:
    """Draw n images pixel by pixel in raster order, each from one forward of the network.

    The noise of pixel (r, c) of image i is Philox4x32-10 with key `seed` and counter
    (r * width + c, first_index + i low, high, stream), stream 0 without context and 1 with one. So
    an image depends on its index and on the seed. The batch that it is drawn in matters to the
    rounding of the forward alone. The model samples in evaluation mode, without dropout.

    context: (n, C, height, width) for a conditioned model. choices: seed=0, first_index=0,
    temperature=1.0, label=None, known=None and mask=None, see `Choices`.
    Returns (n, C, height, width) in the model's dtype and device; pixels that are drawn are
    unclamped for a continuous likelihood, one of the 256 levels for a discretized one.

    Raises ValueError for a count, size, seed or temperature out of range, and for a context or
    known pixels that do not fit. Source: docs/math.md, section 3.
    """
    return draw_sequentially(model, Request.make(n, choices), (height, width), context)


@torch.no_grad()
def draw_sequentially(
    model: PixelCNNpp,
    request: Request,
    size: tuple[int, int],
    context: Tensor | None = None,
    progress: Progress | None = None,
) -> Tensor:
    """Draw a request as `sequential_sample` does. progress: called after each row."""
    model, x, mask, uniforms, encoded = begin(model, request, size, context)
    complete = mask.all(0)[0].tolist()
    height, width = size
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
                temperature=request.temperature,
                **model.config.mixture,
            )
            x[here] = torch.where(mask[here], x[here], drawn)
        if progress is not None:
            progress((r + 1) / height)
    return x


def begin(
    model: PixelCNNpp,
    request: Request,
    size: tuple[int, int],
    context: Tensor | None,
    start: Tensor | None = None,
) -> tuple[PixelCNNpp, Tensor, Tensor, Tensor, Encoded]:
    """The model in evaluation mode; images (n, C, H, W), zeros or `start` where no pixel is known;
    the mask (n, 1, H, W) of the known ones; the noise (n, 4, H, W); the encoded context.
    """
    check_size(size)
    shape, like = (request.count, model.config.image_channels, *size), model.head.bias
    check_memory(shape)
    if start is not None and tuple(start.shape) != shape:
        raise ValueError(f"start must have shape {shape}, got {tuple(start.shape)}")
    x = like.new_zeros(shape) if start is None else start.detach().to(like).clone()
    mask = torch.zeros_like(x[:, :1], dtype=torch.bool)
    if request.known is not None:
        x, mask = request.known.keep(x), request.known.mask[:, None]
    words = image_words(
        request.count,
        size[0] * size[1],
        seed=request.seed,
        first_index=request.first_index,
        stream=Stream.SAMPLE if model.config.conditioning == "none" else Stream.SAMPLE_CONDITIONED,
        device=like.device,
    )
    uniforms = to_uniform(words).to(like.dtype).view(-1, *size, 4).permute(0, 3, 1, 2)
    if model.training:  # another thread may go on training it: the copy shares its weights
        shared = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
        model = copy.deepcopy(model, shared).eval()
    label = request.labels(model.config.condition_size, like.device)
    return model, x, mask, uniforms, model.encode_context(x, context, label)


def select_context(encoded: Encoded, rows: int, images: Tensor | None = None) -> Encoded:
    """The part of an encoded context that `decode` needs for the first rows of some images."""
    stacked, streams, vector = encoded
    if images is not None:
        stacked, vector = (None if e is None else e[images] for e in (stacked, vector))
    if streams is not None:
        u, ul = (e[:, :, :rows] if images is None else e[images, :, :rows] for e in streams)
        streams = u, ul
    return Encoded(stacked, streams, vector)
