"""Sampling by forward passes: one per pixel (the specification), or Jacobi iterations."""

from __future__ import annotations

import time
from typing import NamedTuple

import torch
from torch import Tensor
from typing_extensions import Unpack

from ..functional import logistic_mixture_sample
from ..functional.logistic_mixture import extrapolate
from ..nn import PixelCNNpp
from ..nn.changes import change_of
from ..nn.pixelcnnpp import Encoded
from ..nn.weights import in_evaluation
from ..philox import Stream, image_words, to_uniform
from ..progress import LOG, Progress, clock
from .request import Choices, Request, checked_shape

# Drawing times above this many seconds are reported.
LEAST_STATED = 30.0
# A continuous pixel has converged when it changes by at most this many roundings of its dtype.
ROUNDINGS = 8


class JacobiSamples(NamedTuple):
    """Images, and the number of forward passes for each image."""

    images: Tensor  # (n, C, H, W)
    iterations: Tensor  # (n,) int64


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
    the batch may change. The model samples in evaluation mode, without dropout.

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
    progress: Progress | None = None,
) -> Tensor:
    """Draw a request like `sequential_sample`. progress: called after each row.

    The logger `dsmooth` reports the time left if it is more than LEAST_STATED seconds.
    """
    canvas = _Canvas(model, request, size, context)
    complete = canvas.mask.all(0)[0].tolist()
    # The time of a pass is proportional to its rows.
    work = [row.count(False) * (r + 4) for r, row in enumerate(complete)]
    height, width = size
    started, is_stated = time.monotonic(), False
    for r in range(height):
        for c in range(width):
            if not complete[r][c]:
                rows, columns = slice(r, r + 1), slice(c, c + 1)
                canvas.x[:, :, rows, columns] = canvas.redrawn(slice(None), rows, columns)
        if work[r] and not is_stated:
            left = (time.monotonic() - started) * sum(work[r + 1 :]) / work[r]
            is_stated = True
            if left > LEAST_STATED:
                LOG.warning("drawing pixel by pixel: about %s left", clock(left))
        if progress is not None:
            progress((r + 1) / height)
    return canvas.x


def jacobi_sample(
    model: PixelCNNpp,
    n: int,
    *,
    height: int,
    width: int,
    context: Tensor | None = None,
    **choices: Unpack[Choices],
) -> JacobiSamples:
    """Draw the images of `sequential_sample` as the fixed point of drawing all pixels in parallel.

    With fixed noise, every pixel is a function of the pixels before it. So an image is a function F
    of itself, and the sampled image is the only fixed point x = F(x). The sampler starts from zeros
    and iterates x <- F(x), one forward pass each. After t iterations the first t pixels are exact,
    so it terminates; it stops earlier where pixels depend little on others. An image leaves the
    batch after an iteration that did not change its pixels: by not a single bit for a discretized
    likelihood and in half precision, else by at most 8 roundings. The count includes that
    iteration.

    Arguments and errors: see `sequential_sample`. Source: Song, Meng et al., Accelerating
    feedforward computation via parallel nonlinear equation solving (2021).
    """
    return draw_by_jacobi(model, Request.make(n, choices), (height, width), context)


@torch.no_grad()
def draw_by_jacobi(
    model: PixelCNNpp,
    request: Request,
    size: tuple[int, int],
    context: Tensor | None = None,
    progress: Progress | None = None,
) -> JacobiSamples:
    """Draw a request like `jacobi_sample`; progress counts the images that have converged."""
    canvas, n, (height, width) = _Canvas(model, request, size, context), request.count, size
    x, precision = canvas.x, torch.finfo(canvas.x.dtype)
    exact = model.config.likelihood == "discretized" or precision.bits <= 16
    rounding = 0.0 if exact else ROUNDINGS * precision.eps
    iterations = torch.zeros(n, dtype=torch.int64, device=x.device)
    active = torch.arange(n, device=x.device)
    for _ in range(height * width + 1):
        drawn = canvas.redrawn(active, slice(0, height), slice(0, width))
        moved = (drawn - x[active]).abs()
        x[active] = drawn
        iterations[active] += 1
        settled = (moved <= rounding * drawn.abs().clamp(min=1)).flatten(1).all(1)
        active = active[~settled]
        if progress is not None:
            progress(1 - len(active) / n)
        if len(active) == 0:
            break
    return JacobiSamples(x, iterations)


class _Canvas:
    """Images x (n, C, H, W) to draw, with known pixels at mask (n, 1, H, W)."""

    def __init__(
        self,
        model: PixelCNNpp,
        request: Request,
        size: tuple[int, int],
        context: Tensor | None,
    ) -> None:
        like = model.head.bias
        self.x = like.new_zeros(checked_shape(request.count, model.config.image_channels, *size))
        self.mask = torch.zeros_like(self.x[:, :1], dtype=torch.bool)
        if request.known is not None:
            self.x = request.known.keep(self.x, as_bytes=model.config.fourier_features > 0)
            self.mask = request.known.mask[:, None]
        conditioned = model.config.conditioning != "none"
        words = image_words(
            request.count,
            size[0] * size[1],
            seed=request.seed,
            first_index=request.first_index,
            stream=Stream.SAMPLE_CONDITIONED if conditioned else Stream.SAMPLE,
            device=like.device,
        )
        uniforms = to_uniform(words).to(like.dtype)
        self.uniforms = uniforms.view(-1, *size, 4).permute(0, 3, 1, 2)
        self.model, self.request = in_evaluation(model), request
        self.context, self.labels = context, request.passes(model.config, like)
        # A replaced forward may not use encode and decode.
        self.whole = change_of(model) is not None
        self.passes = [
            self.model.encode_context(self.x, context, label)
            for label in ([] if self.whole else self.labels)
        ]

    def redrawn(self, images: Tensor | slice, rows: slice, columns: slice) -> Tensor:
        """Draw some pixels of some images, given the images; known pixels are kept."""
        visible = (rows.stop + 3) // 4 * 4  # later rows do not matter; H is a multiple of 4
        outputs = [
            self.model(self.x[images], *(e if e is None else e[images] for e in (self.context, y)))
            for y in (self.labels if self.whole else ())
        ]
        for stacked, streams, vector in self.passes:
            stacked, vector = (None if e is None else e[images] for e in (stacked, vector))
            if streams is not None:
                u, ul = (e[images, :, :visible] for e in streams)
                streams = u, ul
            encoded = Encoded(stacked, streams, vector)
            outputs.append(self.model.decode(self.x[images, :, :visible], encoded))
        params = outputs[0]
        if guidance := self.request.guidance:  # the second pass has no class
            n_atoms = len(self.model.config.atom_bytes)
            params = extrapolate(outputs[1], params, 1 + guidance, self.x.shape[1], n_atoms)
        x = self.x[images, :, rows, columns]
        drawn = logistic_mixture_sample(
            params[:, :, rows, columns],
            self.uniforms[images, :, rows, columns],
            x.shape[1],
            temperature=self.request.temperature,
            **self.model.config.mixture,
        )
        return torch.where(self.mask[images, :, rows, columns], x, drawn.to(x.dtype))
