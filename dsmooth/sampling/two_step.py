"""Two-step sampling: x~ from the noisy model, then x from the denoiser or as the posterior mean."""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor

from ..data.pictures import is_diverged
from ..nn.gradients import input_gradient
from ..progress import portion
from ..smoothing import GaussianSmoothing, Smoothing
from ..work import runs
from .draw import Draw, Drawer, KnownPixels
from .sequential import ForwardPasses

# An image that `disagrees` with its x~ is drawn again up to ATTEMPTS times. If x~ - x is noise of
# the smoothing, a row disagrees with probability CHANCE.
ATTEMPTS, CHANCE = 16, 1e-12


@torch.no_grad()
def draw(draw: Draw) -> Tensor:
    """The images (n, C, H, W) of a draw: x~, which is given or drawn from p(x~), or x given x~.

    An image is all NaN if its x~ diverged.
    """
    x_tilde, noisy, denoiser = draw.x_tilde, draw.noisy, draw.denoiser
    steps = 2 if noisy is not None and denoiser is not None else 1
    if noisy is not None:
        with portion(1 / steps):
            x_tilde = draw_noisy(draw, noisy)
    assert x_tilde is not None  # it is given, or was drawn
    if denoiser is None:
        return x_tilde
    diverged = is_diverged(x_tilde).view(-1, 1, 1, 1)
    step = replace(draw.seen_by(denoiser), x_tilde=torch.where(diverged, 0.0, x_tilde))
    with portion(1 / steps):
        x = denoiser.run(step) if draw.method == "single-step" else draw_clean(step, denoiser)
    return torch.where(diverged, math.nan, x)


def draw_noisy(draw: Draw, noisy: Drawer) -> Tensor:
    """x~ ~ p(x~); its known pixels are those of the draw plus noise of the smoothing."""
    known, smoothing = draw.known, draw.smoothing
    if known is not None and smoothing is not None:
        seed, first_index = draw.seed, draw.indices.start
        noised = smoothing.sample(known.images, seed=seed, first_index=first_index)
        draw = replace(draw, known=KnownPixels(noised, known.mask))
    return noisy.run(draw.seen_by(noisy))


def draw_clean(draw: Draw, denoiser: Drawer) -> Tensor:
    """x ~ p(x | x~), drawn again where it `disagrees` with x~ (docs/experiments/028).

    Every attempt has a seed of its own. Where all attempts disagree, the first is kept: so a barely
    trained denoiser draws as it would with one attempt.
    """
    x_tilde, smoothing = draw.x_tilde, draw.smoothing
    assert x_tilde is not None
    assert smoothing is not None
    step = replace(draw, x_tilde=x_tilde.to(denoiser.image_dtype))
    x = denoiser.run(step)
    wrong = disagrees(smoothing, x, x_tilde)
    for attempt in range(1, ATTEMPTS + 1):
        for part in runs(wrong.nonzero().flatten().tolist(), len(x)):
            images = slice(part.start, part.stop)
            drawn = denoiser.run(replace(step.part(part), seed=step.seed ^ attempt << 59))
            wrong[images] = disagrees(smoothing, drawn, x_tilde[images])
            x[images] = torch.where(wrong[images].view(-1, 1, 1, 1), x[images], drawn)
    return x


def disagrees(smoothing: Smoothing, x: Tensor, x_tilde: Tensor) -> Tensor:
    """Whether any row of pixels of x~ - x is too large for gaussian noise: (N,) bool.

    A row is too large if the probability that noise has its sum of squares or more is below CHANCE.
    False for other smoothing.
    """
    if type(smoothing) is not GaussianSmoothing:  # a subclass may have other noise
        return x.new_zeros(len(x), dtype=torch.bool)
    noise = (x_tilde.double() - x.double()) / smoothing.scale
    degrees = noise.new_tensor(x.shape[1] * x.shape[3])
    chance = torch.special.gammaincc(degrees / 2, noise.square().sum((1, 3)) / 2)
    return (chance < CHANCE).any(1)


class PosteriorMean(ForwardPasses):
    """A noisy model that denoises: x is the mean given x~."""

    def run(self, draw: Draw) -> Tensor:
        """E[x | x~] = x~ + scale**2 * grad log p(x~) (Tweedie's formula); known pixels are kept."""
        assert draw.x_tilde is not None
        assert draw.smoothing is not None
        x_tilde = draw.x_tilde.to(self.image_dtype)
        gradient, *without_class = (
            input_gradient(self.model, x_tilde, label) for label in draw.passes
        )
        for other in without_class:
            gradient = torch.lerp(other, gradient, 1 + draw.guidance)
        x = x_tilde + draw.smoothing.scale**2 * gradient
        return x if draw.known is None else draw.known.keep(x)
