"""The specification of sampling: one forward of the network per pixel."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from ..functional import logistic_mixture_sample
from ..nn import PixelCNNpp
from ..nn.pixelcnnpp import Encoded
from .philox import Stage, image_words, to_uniform


@torch.no_grad()
def sequential_sample(
    model: PixelCNNpp,
    n: int,
    *,
    height: int,
    width: int,
    seed: int = 0,
    first_index: int = 0,
    context: Tensor | None = None,
    temperature: float = 1.0,
) -> Tensor:
    """Draw n images pixel by pixel in raster order, each from one forward of the network.

    The noise of pixel (r, c) of image i is Philox4x32-10 with key `seed` and counter
    (r * width + c, first_index + i low, high, stage), stage 0 without context and 1 with one, so
    an image depends on its index and on the seed, not on the batch that it is drawn in (up to the
    rounding of the forward). The model samples in evaluation mode, without dropout.

    context: (n, C, height, width) for a conditioned model. temperature: > 0; divides the logits
    and multiplies the scales. Returns (n, C, height, width) in the model's dtype and device;
    unclamped for a continuous likelihood, one of the 256 levels for a discretized one.

    Raises ValueError for a count, size, seed or temperature out of range, and for a context that
    does not fit. Source: math.md section 3.
    """
    check_sample_arguments(n, height, width, temperature)
    parameter = model.head.bias
    x = parameter.new_zeros(n, model.config.image_channels, height, width)
    uniforms = pixel_uniforms(model, n, height, width, seed, first_index)
    with evaluating(model):
        encoded = model.encode_context(x, context)
        for r in range(height):
            # Rows below r cannot matter; what remains must stay a multiple of 4.
            rows = r // 4 * 4 + 4
            visible = select_context(encoded, rows)
            for c in range(width):
                params = model.decode(x[:, :, :rows], visible)
                here = (..., slice(r, r + 1), slice(c, c + 1))
                x[here] = logistic_mixture_sample(
                    params[here],
                    uniforms[here],
                    x.shape[1],
                    temperature=temperature,
                    **model.config.mixture,
                )
    return x


def pixel_uniforms(
    model: PixelCNNpp, n: int, height: int, width: int, seed: int, first_index: int
) -> Tensor:
    """The noise of n images: (n, 4, height, width) in the model's dtype and device."""
    parameter = model.head.bias
    stage = Stage.SAMPLE if model.config.conditioning == "none" else Stage.SAMPLE_CONDITIONED
    words = image_words(
        n,
        height * width,
        seed=seed,
        first_index=first_index,
        stage=stage,
        device=parameter.device,
    )
    return to_uniform(words).to(parameter.dtype).view(n, height, width, 4).permute(0, 3, 1, 2)


@contextmanager
def evaluating(model: PixelCNNpp) -> Iterator[None]:
    """The model in evaluation mode, without dropout."""
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)


def select_context(encoded: Encoded, rows: int, images: Tensor | None = None) -> Encoded:
    """What `decode` needs of an encoded context for the first rows of x, of some of the images."""
    if isinstance(encoded, tuple):
        u, ul = (e[:, :, :rows] if images is None else e[images, :, :rows] for e in encoded)
        return u, ul
    if encoded is None or images is None:
        return encoded
    return encoded[images]


def check_sample_arguments(n: int, height: int, width: int, temperature: float) -> None:
    """Raise ValueError for arguments of a sampler that are out of range."""
    if n < 1:
        raise ValueError(f"the number of images must be at least 1, got {n}")
    for name, size in (("height", height), ("width", width)):
        if size < 4 or size % 4:
            raise ValueError(f"{name} must be a positive multiple of 4, got {size}")
    if not 0 < temperature < float("inf"):
        raise ValueError(f"temperature must be positive, got {temperature}")
