"""Jacobi sampling: all pixels at once from a guess of the image, again until nothing changes."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from ..functional import logistic_mixture_sample
from ..nn import PixelCNNpp
from .request import Choices, Progress, Request
from .sequential import begin, select_context

if TYPE_CHECKING:
    from typing_extensions import Unpack

# A continuous pixel has settled when it moves by no more than this, in roundings of its dtype.
ROUNDINGS = 8


class JacobiSamples(NamedTuple):
    """Images, and how many forwards of the network each of them took."""

    images: Tensor  # (n, C, H, W)
    iterations: Tensor  # (n,) int64


def jacobi_sample(
    model: PixelCNNpp,
    n: int,
    *,
    height: int,
    width: int,
    context: Tensor | None = None,
    by_row: bool = False,
    start: Tensor | None = None,
    **choices: Unpack[Choices],
) -> JacobiSamples:
    """Draw the images of `sequential_sample` as the fixed point of drawing all pixels in parallel.

    With the noise of every pixel fixed, a pixel is a function of those before it. So an image is a
    function F of itself, and the sampled image is the only fixed point x = F(x). From the guess
    `start` the sampler iterates x <- F(x), one forward each. After t iterations the first t pixels
    are exact, so it ends; it ends sooner where pixels depend little on others. An image leaves the
    batch when an iteration, which counts, did not move its pixels: bitwise for a discretized
    likelihood, within 8 roundings for a continuous one. by_row: settle row after row, each
    iteration over the rows so far.

    start: (n, C, height, width), by default zeros; it decides the number of iterations, not the
    images, but for rounding. The other arguments are those of `sequential_sample`; F keeps known
    pixels.

    Returns images (n, C, height, width) and iterations (n,): with by_row, the sum over rows of
    forwards on as many rows. Raises ValueError as `sequential_sample` does, and for a start of
    another shape. Source: Song, Meng et al., Accelerating feedforward computation via parallel
    nonlinear equation solving (2021).
    """
    request, size = Request.make(n, choices), (height, width)
    return draw_by_jacobi(model, request, size, context, by_row=by_row, start=start)


@torch.no_grad()
def draw_by_jacobi(
    model: PixelCNNpp,
    request: Request,
    size: tuple[int, int],
    context: Tensor | None = None,
    progress: Progress | None = None,
    *,
    by_row: bool = False,
    start: Tensor | None = None,
) -> JacobiSamples:
    """Draw a request as `jacobi_sample` does; progress follows the images that settled."""
    n, (height, width) = request.count, size
    model, x, mask, uniforms, encoded = begin(model, request, size, context, start)
    exact = model.config.likelihood == "discretized"
    rounding = 0.0 if exact else ROUNDINGS * torch.finfo(x.dtype).eps
    iterations = torch.zeros(n, dtype=torch.int64, device=x.device)
    bands = [(r, r + 1) for r in range(height)] if by_row else [(0, height)]
    for first, end in bands:
        rows = (end + 3) // 4 * 4  # rows below cannot matter; a multiple of 4 must be there
        active = torch.arange(n, device=x.device)
        for _ in range((end - first) * width + 1):
            params = model.decode(x[active, :, :rows], select_context(encoded, rows, active))
            drawn = logistic_mixture_sample(
                params[:, :, first:end],
                uniforms[active, :, first:end],
                x.shape[1],
                temperature=request.temperature,
                **model.config.mixture,
            ).to(x.dtype)
            before = x[active, :, first:end]
            drawn = torch.where(mask[active, :, first:end], before, drawn)
            moved = (drawn - before).abs()
            x[active, :, first:end] = drawn
            iterations[active] += 1
            settled = (moved <= rounding * drawn.abs().clamp(min=1)).flatten(1).all(1)
            active = active[~settled]
            if progress is not None:
                progress((end - (end - first) * len(active) / n) / height)
            if len(active) == 0:
                break
    return JacobiSamples(x, iterations)
