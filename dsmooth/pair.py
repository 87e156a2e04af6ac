"""A noisy model and a denoiser: two-step sampling, denoising and the bound on log p(x)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from functools import cached_property
from itertools import pairwise
from numbers import Real
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from .config import Method, Precision, Role
from .fields import ArgumentError, check_number
from .fit import check_fit, describe
from .nn import PixelCNNpp
from .nn.gradient import gradient_of
from .nn.images import check_scale, check_tensor, unrounded
from .nn.weights import at_level, in_evaluation
from .pictures import is_diverged
from .pretrained import SavedNetwork, pairs
from .progress import progress as bar
from .runs import Origin
from .sampling import cached
from .sampling.ladder import draw_pair, log_weight
from .sampling.request import (
    Choices,
    Execution,
    Progress,
    Request,
    known_pixels,
    normal_float,
)
from .sampling.request import keep_top as top_rows
from .smoothing import GaussianSmoothing, Smoothing

if TYPE_CHECKING:
    from typing_extensions import Unpack


class SmoothedPair(nn.Module):
    """p(x~) and p(x | x~) with the smoothing q(x~ | x) that they were trained for.

    It draws and measures without dropout, in training mode too.
    noisy: a model with conditioning "none" and likelihood "continuous", or "gaussian" with the
    smoothing's scale. denoiser: a model with conditioning "stack" or "concat". Either may have
    classes, or both as many. Both may have the same noise_levels; smoothing is then of the highest.
    image_size: (H, W), multiples of 4.
    Raises ValueError for models that do not fit together. Source: Meng et al. (ICLR 2021).
    """

    def __init__(
        self,
        noisy: PixelCNNpp,
        denoiser: PixelCNNpp,
        smoothing: Smoothing,
        image_size: Sequence[int],
    ) -> None:
        super().__init__()
        check_fit(noisy, denoiser, smoothing)
        sizes = tuple(image_size) if hasattr(image_size, "__len__") else ()
        if len(sizes) != 2 or any(size < 4 or size % 4 for size in sizes):
            raise ValueError(
                f"image_size must be a height and a width, multiples of 4, got {image_size}"
            )
        self.noisy = noisy
        self.denoiser = denoiser
        self.smoothing = smoothing
        self.image_size = (int(sizes[0]), int(sizes[1]))
        self.saved: Sequence[SavedNetwork] = ()

    save_pretrained, push_to_hub = pairs.save_pretrained, pairs.push_to_hub
    from_pretrained: classmethod[SmoothedPair, ..., SmoothedPair] = classmethod(
        pairs.from_pretrained
    )
    from_runs: classmethod[SmoothedPair, ..., SmoothedPair] = classmethod(pairs.from_runs)

    @cached_property
    def origin(self) -> Mapping[Role, Origin]:
        """Origin of the weights, as far as it is known; shown by the model card."""
        found = {network.role: network.read_origin() for network in self.saved}
        return {role: origin for role, origin in found.items() if origin is not None}

    @torch.no_grad()
    def sample(
        self,
        n: int,
        *,
        method: Method = "two-step",
        levels: Sequence[float] | None = None,
        threads: int | None = None,
        precision: Precision = "auto",
        batch_size: int | None = None,
        progress: bool | Progress = False,
        **choices: Unpack[Choices],
    ) -> Tensor:
        """Draw n images, by default in two steps; the same ones each time unless seed is None.

        The steps are x~ ~ p(x~) and x ~ p(x | x~).

        method: "two-step"; "single-step" replaces the second draw by the posterior mean
        x~ + scale**2 * grad log p(x~) (Gaussian smoothing only); "noisy" gives x~ itself.
        levels: for a pair of several noise levels, the scales of a ladder, falling; by default the
        highest alone. x~ of the first is drawn, then an image and x~ of the next, and so on, at
        last x (docs/math.md, section 7).
        threads: None for torch's setting. precision: of the cached sampler; "auto" is bfloat16 on a
        CUDA device, float32 on the CPU. batch_size: images drawn at a time at most, to save memory;
        the cached sampler's images do not depend on it. progress: True shows a bar; a function is
        called with the fraction that is done.

        choices: seed=0, generator=None, first_index=0, temperature=1.0, label=None, guidance=0,
        known=None and mask=None, see `dsmooth.sampling.Choices`. The known pixels of x~ are known
        plus the smoothing's noise, a function of (seed, image index); method "noisy" returns these.
        docs/math.md, section 4, says which distribution this draws from. Without a label a pair
        with classes draws the class of each image, "prior".

        Returns (n, C, H, W); x~ is not clamped, nor is x from a continuous denoiser. An image whose
        x~ diverged is NaN. Raises ValueError or TypeError for arguments out of range or that do not
        fit.
        """
        if self.n_classes and choices.get("label") is None:
            choices["label"] = "prior"
        rungs, drawn = self.rungs(levels), []
        request = self._request(n, choices, method=method, levels=levels)
        if batch_size is not None:
            check_number("batch_size", batch_size)
        execution = Execution(threads, precision)
        with bar("drawing", n) if progress is True else nullcontext() as show:

            def report(fraction: float) -> None:
                images = part.first_index - request.first_index + fraction * part.count
                if show is not None:
                    show(images)
                elif not isinstance(progress, bool):
                    progress(images / n)

            for part in request.parts(batch_size or n):
                drawn.append(draw_pair(rungs, part, execution, report if progress else None))
        return torch.cat(drawn)

    @torch.no_grad()
    def complete(
        self,
        x: Tensor,
        mask: Tensor | None = None,
        *,
        keep_top: float = 0.5,
        draws: int = 1,
        **options: Any,
    ) -> Tensor:
        """Draw the missing part of images x (B, C, H, W) in [-1, 1], `draws` times for each.

        mask: (1, H, W) or (B, H, W) bool, True where a pixel is known; by default the upper rows,
        the fraction `keep_top` of them. options: those of `sample`, which says what this draws
        from. Returns (B * draws, C, H, W), the completions of an image one after the other.
        """
        self._check_images("x", x)
        check_number("draws", draws)
        if mask is None:
            mask = top_rows(keep_top, self.image_size).to(x.device)
        given = known_pixels(x, mask, len(x), "x")
        self._check_scale("x", given.values)
        if self.denoiser.config.likelihood == "discretized":
            x = unrounded(x)
        exact = x.to(torch.promote_types(self.dtype, torch.float32))
        known, mask = (each.repeat_interleave(draws, dim=0) for each in (exact, given.mask))
        return self.sample(len(known), known=known, mask=mask, **options)

    def forward(self, x: Tensor, **options: Any) -> Tensor:
        """The bound of `elbo`: (B,), nats."""
        return self.elbo(x, **options)

    @torch.no_grad()
    def denoise(
        self,
        x_tilde: Tensor,
        *,
        method: Method = "two-step",
        levels: Sequence[float] | None = None,
        threads: int | None = None,
        precision: Precision = "auto",
        **choices: Unpack[Choices],
    ) -> Tensor:
        """Denoise images x~ (B, C, H, W): the second step of `sample`.

        Their noise has the scale levels[0]. Raises ValueError for images of another size.
        """
        self._check_images("x_tilde", x_tilde)
        n, rungs = x_tilde.shape[0], self.rungs(levels)
        asked: dict[str, Any] = {"method": method, "levels": levels}
        request = self._request(n, choices, **asked, x_tilde=x_tilde)
        return draw_pair(rungs, request, Execution(threads, precision))

    def _request(self, n: int, choices: Choices, **how: Any) -> Request:
        """The request of a user's choices; ValueError for known pixels that no image can have."""
        request = Request.make(n, choices, **how)
        if request.known is not None:
            self._check_scale("known", request.known.values)
        return request

    def rungs(self, levels: Sequence[float] | None = None) -> list[SmoothedPair]:
        """This pair at each noise level of a ladder, falling; by default at its highest alone.

        Raises ValueError for levels that do not fall or that the pair does not have.
        """
        known = self.noise_levels
        if isinstance(levels, Real):
            raise ArgumentError("levels", f"must be a list of noise levels, got {levels}")
        chosen = known[-1:] if levels is None else tuple(levels)
        falling = all(high > low for high, low in pairwise(chosen))
        if not chosen or not falling or not set(chosen) <= set(known):
            allowed, given = (", ".join(map(str, scales)) for scales in (known, chosen))
            raise ArgumentError(
                "levels", f"must fall and be among {allowed}, got {given or 'none'}"
            )
        return [self.at(scale) for scale in chosen]

    def noisy_request(self, request: Request) -> Request:
        """The request of x~ ~ p(x~). Its known pixels have the smoothing's noise."""
        known, seed, first = request.known, request.seed, request.first_index
        if known is not None:
            x_tilde = self.smoothing.sample(known.images, seed=seed, first_index=first)
            known = replace(known, images=x_tilde)
        return replace(self._request_for(self.noisy, request), known=known)

    def draw_clean(
        self,
        x_tilde: Tensor,
        request: Request,
        execution: Execution,
        progress: Progress | None = None,
    ) -> Tensor:
        """The image of each x~ (B, C, H, W), by the request's method; NaN where x~ diverged."""
        if request.method == "noisy":
            return x_tilde
        diverged = is_diverged(x_tilde).view(-1, *[1] * (x_tilde.ndim - 1))
        x_tilde = torch.where(diverged, 0.0, x_tilde)
        if request.method == "single-step":
            labels = request.labels(self.n_classes, x_tilde.device)
            x_tilde = x_tilde.to(self.dtype)
            x = self.single_step(x_tilde, label=labels, guidance=request.guidance)
            x = x if request.known is None else request.known.keep(x)
        else:
            own, size = self._request_for(self.denoiser, request), self.image_size
            x = cached.draw(self.denoiser, own, size, x_tilde, progress, execution)
        return torch.where(diverged, math.nan, x)

    @torch.no_grad()
    def single_step(
        self,
        x_tilde: Tensor,
        *,
        label: Tensor | None = None,
        guidance: float = 0.0,
    ) -> Tensor:
        """The posterior mean E[x | x~] = x~ + scale**2 * grad log p(x~) (Tweedie's formula).

        label: as in `elbo`. guidance: as in `Choices`, but it extrapolates the gradients of the two
        passes, not their parameters. The result has no derivative.
        Raises ValueError for smoothing that is not Gaussian.
        """
        if not isinstance(self.smoothing, GaussianSmoothing):
            raise ValueError(
                f"single-step denoising needs gaussian smoothing, got {self.smoothing.kind}"
            )
        self._check_images("x_tilde", x_tilde)
        guidance = normal_float("guidance", guidance, or_zero=True)
        if guidance and not self.n_classes:
            raise ArgumentError("guidance", "is for pairs with classes, which this one has not")
        noisy = self.at(self.smoothing.scale).noisy
        gradient = gradient_of(noisy, x_tilde, self.label_for(noisy, label), guidance)
        return x_tilde + self.smoothing.scale**2 * gradient

    @torch.no_grad()
    def elbo(
        self,
        x: Tensor,
        *,
        label: Tensor | None = None,
        levels: Sequence[float] | None = None,
        n_noise: int = 1,
        importance_weighted: bool = False,
        seed: int = 0,
        first_index: int = 0,
    ) -> Tensor:
        """A lower bound on log p(x) from `n_noise` draws of x~ per image: (B,), nats.

        Each draw gives a log-weight log p(x~) - log q(x~ | x) + log p(x | x~). Their mean estimates
        the evidence lower bound; with `importance_weighted` the log of the mean weight, which is
        tighter in expectation. With a discretized denoiser it bounds the log-probability of bytes;
        with a continuous one a log-density in units of [-1, 1].
        The noise of row b is a function of (seed, first_index + b, draw). label: for a pair with
        classes, as in `PixelCNNpp.forward`; the bound is then that of log p(x | label). Without
        one a weight is the sum over classes, all as likely beforehand. levels: of a ladder, as in
        `sample`; log p(x~) is then a bound itself (docs/math.md, section 7). Raises ValueError for
        images of another size or outside [-1, 1], and for a discretized denoiser for values that
        are none of bytes.
        """
        check_number("n_noise", n_noise)
        self._check_images("x", x)
        self._check_scale("x", x)

        rungs, where = self.rungs(levels), {"seed": seed, "first_index": first_index}
        draws = [log_weight(rungs, x, label, repeat=i, **where) for i in range(n_noise)]
        weights = torch.stack(draws)
        if importance_weighted:
            return torch.logsumexp(weights, dim=0) - math.log(n_noise)
        return weights.mean(0)

    def noisy_log_prob(self, x_tilde: Tensor, label: Tensor | None = None) -> Tensor:
        """log p(x~), for a pair of one noise level: (B,), nats."""
        return self.noisy.log_prob(x_tilde, label=self.label_for(self.noisy, label))

    def denoiser_log_prob(self, x: Tensor, x_tilde: Tensor, label: Tensor | None = None) -> Tensor:
        """log p(x | x~), for a pair of one noise level: (B,), nats."""
        return self.denoiser.log_prob(x, x_tilde, self.label_for(self.denoiser, label))

    def label_for(self, model: PixelCNNpp, label: Any) -> Any:
        """`label` as one of the two models takes it: None for a model without classes."""
        if label is not None and not self.n_classes:
            raise ValueError("label was given, but neither model of the pair has classes")
        return label if model.config.condition_size else None

    def _request_for(self, model: PixelCNNpp, request: Request) -> Request:
        """The request as one of the two models takes it; without classes both refuse guidance."""
        guidance = request.guidance if model.config.condition_size or not self.n_classes else 0.0
        return replace(request, label=self.label_for(model, request.label), guidance=guidance)

    def _check_images(self, name: str, x: Tensor) -> None:
        """Raise TypeError or ValueError unless x has the pair's shape of images and its device."""
        check_tensor(name, x)
        shape = (self.noisy.config.image_channels, *self.image_size)
        if tuple(x.shape[1:]) != shape:
            how = ": crop, pad or resize the images" * (x.ndim == 4 and x.shape[1] == shape[0])
            if tuple(x.shape) == shape:
                how = f": {name}[None] is a batch of one"
            raise ValueError(
                f"{name} must have shape (B, {', '.join(map(str, shape))}), got "
                f"{tuple(x.shape)}{how}"
            )
        if x.device != self.device:
            raise ValueError(f"{name} must be on {self.device}, as the pair is, got {x.device}")

    def _check_scale(self, name: str, x: Tensor) -> None:
        check_scale(name, x, as_bytes=self.denoiser.config.likelihood == "discretized")

    @property
    def device(self) -> torch.device:
        """Device of the models."""
        return self.noisy.head.bias.device

    @property
    def dtype(self) -> torch.dtype:
        """Type of the models' weights."""
        return self.noisy.head.bias.dtype

    @property
    def n_classes(self) -> int:
        """Classes of the models that have some, 0 for a pair without."""
        return max(model.config.condition_size for model in (self.noisy, self.denoiser))

    @property
    def noise_levels(self) -> tuple[float, ...]:
        """The scales of noise that the models know, rising; often the smoothing's alone."""
        return self.noisy.config.noise_levels or (self.smoothing.scale,)

    def at(self, scale: float) -> SmoothedPair:
        """The pair at one of its `noise_levels`, with shared weights.

        The result has that level alone and is in evaluation mode. A pair of one level in evaluation
        mode returns itself. Raises ValueError for another scale.
        """
        if scale not in self.noise_levels:
            raise ValueError(f"the noise levels of the pair are {self.noise_levels}, not {scale}")
        noisy, denoiser, smoothing = self.noisy, self.denoiser, self.smoothing
        if noisy.config.noise_levels:
            level = self.noise_levels.index(scale)
            noisy, denoiser = (at_level(model, level) for model in (noisy, denoiser))
            smoothing = GaussianSmoothing(scale)
        elif noisy.training or denoiser.training:
            noisy, denoiser = in_evaluation(noisy), in_evaluation(denoiser)
        else:
            return self
        return SmoothedPair(noisy, denoiser, smoothing, self.image_size).eval()

    def __repr__(self) -> str:
        """Both networks, the smoothing and the images in a few lines; not every layer."""
        shape = " x ".join(map(str, (self.noisy.config.image_channels, *self.image_size)))
        return (
            f"SmoothedPair(\n  noisy: {describe(self.noisy)}\n"
            f"  denoiser: {describe(self.denoiser)}\n"
            f"  smoothing: {self.smoothing.kind} of scale {self.smoothing.scale}\n"
            f"  images: {shape}, on {self.device}\n)"
        )
