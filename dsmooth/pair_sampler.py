"""Drawing from a pair: down from the highest noise level of a ladder to the image."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from itertools import pairwise

from torch import Tensor

from .nn import PixelCNNpp
from .pair_networks import PairNetworks
from .sampling.auto import NetworkSampler
from .sampling.draw import Draw, Progress, share_of_progress
from .sampling.known import known_pixels
from .sampling.ladder import Step, seed_of_rung


class PairSampler:
    """Draws the parts of one drawing from a pair, whose networks are packed once.

    As of a `NetworkSampler`, its life ends with the drawing.
    """

    def __init__(self, pair: PairNetworks) -> None:
        self.pair = pair
        self._rung = cache(lambda scale: _Rung(pair.at(scale)))

    def draw(self, draw: Draw, progress: Progress | None = None) -> Tensor:
        """Draw as `SmoothedPair.sample` does. progress: called with the fraction done."""
        scales = self.pair.ladder(draw.levels)
        # One network for x~, and one for every image that is drawn from a noisy one.
        first = 1 / (len(scales) + (draw.method == "two-step"))
        top = self._rung(scales[0])
        x_tilde = top.draw_noisy(draw, share_of_progress(progress, 0.0, first))
        return self.denoise(x_tilde, draw, share_of_progress(progress, first, 1.0))

    def denoise(self, x_tilde: Tensor, draw: Draw, progress: Progress | None = None) -> Tensor:
        """Denoise as `SmoothedPair.denoise` does. progress: called with the fraction done."""
        scales = self.pair.ladder(draw.levels)
        rungs = len(scales) - 1  # above the lowest
        parts = rungs + (draw.method == "two-step")
        for i, (high, low) in enumerate(pairwise(scales)):
            above = replace(draw, seed=seed_of_rung(draw.seed, rungs - i), method="two-step")
            share = share_of_progress(progress, i / parts, (i + 1) / parts)
            x = self._rung(high).denoise(x_tilde, above, share)
            x_tilde = Step(low, high).down(
                x, x_tilde, seed=above.seed, first_index=draw.first_index
            )
        share = share_of_progress(progress, rungs / max(parts, 1), 1.0)
        return self._rung(scales[-1]).denoise(x_tilde, draw, share)


class _Rung:
    """The two networks of a pair for one scale of noise."""

    def __init__(self, pair: PairNetworks) -> None:
        self.pair = pair
        self._noisy = NetworkSampler(pair.noisy, pair.image_size)
        self._denoiser = NetworkSampler(pair.denoiser, pair.image_size)

    def draw_noisy(self, draw: Draw, progress: Progress | None) -> Tensor:
        """Draw x~. Its known pixels are those of x with the smoothing's noise."""
        draw = self._draw_for(self.pair.noisy, draw)
        if draw.known is not None:
            x, mask = draw.known.images, draw.known.mask
            x_tilde = self.pair.smoothing.sample(x, seed=draw.seed, first_index=draw.first_index)
            draw = replace(draw, known=known_pixels(x_tilde, mask, draw.count))
        return self._noisy.draw(draw, progress)

    def denoise(self, x_tilde: Tensor, draw: Draw, progress: Progress | None) -> Tensor:
        """The image of each x~, by the draw's method."""
        if draw.method == "noisy":
            return x_tilde
        if draw.method == "single-step":
            label = draw.labels(self.pair.n_classes, x_tilde.device)
            mean = self.pair.single_step(x_tilde, score=draw.score, label=label)
            return mean if draw.known is None else draw.known.keep(mean)
        return self._denoiser.draw(self._draw_for(self.pair.denoiser, draw), progress, x_tilde)

    def _draw_for(self, model: PixelCNNpp, draw: Draw) -> Draw:
        """The draw as one of the two models takes it."""
        return replace(draw, label=self.pair.label_for(model, draw.label))
