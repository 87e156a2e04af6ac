"""A noisy model and a denoiser: two-step sampling, denoising and the bound on log p(x)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor
from typing_extensions import Unpack

from .bound import GRADIENT_PASSES, TOP_CLASSES, Bound, log_mean_exp, log_weights
from .config import Classes, Method, Precision
from .fields import check_number, check_numbers
from .machine import torch_threads
from .nn import PixelCNNpp
from .nn.condition import ClassLabel, labels_of, log_prior
from .nn.images import check_images, check_scale, check_size
from .nn.pretrained import Pretrained
from .nn.weights import in_evaluation
from .progress import advance_to, portion
from .sampling.draw import Choices, Draw, DrawChoices
from .sampling.resolve import drawn_seed, resolve
from .sampling.resolve import keep_top as top_rows
from .sampling.two_step import draw
from .smoothing import Smoothing
from .work import batches

BOUND_IMAGES = 64  # images that `elbo` computes at a time


class SmoothedPair(Pretrained):
    """p(x~) and p(x | x~) with the smoothing q(x~ | x) that they were trained for.

    Its samples and bounds never use dropout, even in training mode.
    noisy: a model with conditioning "none" and likelihood "continuous", or "gaussian" (of a scale
    at most the smoothing's). denoiser: a model with conditioning "stack" or "concat". Either or
    both may have classes; if both, the same. image_size: (H, W), multiples of 4.
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
        config, second = noisy.config, denoiser.config
        kinds = config.conditioning, config.likelihood, second.conditioning
        if kinds[0] != "none" or kinds[1] == "discretized" or kinds[2] == "none":
            raise ValueError(
                'the noisy model must have conditioning="none" and likelihood="continuous" or '
                '"gaussian", the denoiser conditioning="stack" or "concat"; got "{}" and "{}", '
                'and "{}"'.format(*kinds)
            )
        if config.image_channels != second.image_channels:
            channels = f"{config.image_channels} and {second.image_channels}"
            raise ValueError(f"the models must have the same image_channels, got {channels}")
        if config.classes and second.classes and config.classes.names != second.classes.names:
            names = (", ".join(classes.names) for classes in (config.classes, second.classes))
            raise ValueError(f"the models must have the same classes, got {' and '.join(names)}")
        contains = config.smoothing_scale if config.likelihood == "gaussian" else 0
        if contains and (smoothing.kind != "gaussian" or smoothing.scale < contains):
            raise ValueError(
                'the noisy model\'s likelihood "gaussian" contains gaussian noise of scale '
                f"{contains}, got {smoothing.kind} smoothing of scale {smoothing.scale}"
            )
        # Saved alone, a noisy model must not pass for a plain one.
        noisy.role, denoiser.role = noisy.role or "noisy", denoiser.role or "denoiser"
        self.noisy = noisy
        self.denoiser = denoiser
        self.smoothing = smoothing
        self.image_size: tuple[int, int] = check_size(image_size)

    @torch.no_grad()
    def sample(
        self,
        n: int,
        *,
        method: Method = "two-step",
        threads: int | None = None,
        precision: Precision = "auto",
        batch_size: int | None = None,
        **choices: Unpack[Choices],
    ) -> Tensor:
        """Draw n images, by default x~ ~ p(x~), then x ~ p(x | x~).

        method: "two-step"; "single-step" replaces the second draw by the posterior mean
        x~ + scale**2 * grad log p(x~) (Gaussian smoothing only); "noisy" gives x~ itself.
        threads: None for torch's setting. precision: of the cached sampler; "auto" is bfloat16
        where that is faster, see `sample_images`. batch_size: images drawn at a time at most, to
        save memory; the cached sampler's images do not depend on it.

        For Gaussian smoothing an x is drawn again, at most 16 times, if a row is too far from the
        row of x~ (docs/math.md, section 4). If every draw is too far the first is kept.

        choices: see `dsmooth.sampling.Choices`. The known pixels of x~ are `known` plus the
        smoothing's noise, a function of (seed, image index); method "noisy" keeps them noisy.
        docs/math.md, section 4, says which distribution this draws from. Without a label a pair
        with classes draws the class of a new image from the "prior". It completes and denoises
        without a class if it was trained with label dropout; else ValueError asks for one.

        Returns (n, C, H, W); x~ is not clamped, nor is x from a continuous denoiser. An image whose
        x~ diverged is NaN. Raises ValueError or TypeError for arguments that do not fit.
        """
        asked = partial(resolve, self, n, method=method, precision=precision, **choices)
        return self._draw(asked, threads, batch_size)

    @torch.no_grad()
    def complete(
        self,
        x: Tensor,
        mask: Tensor | None = None,
        *,
        keep_top: float = 0.5,
        draws: int = 1,
        method: Method = "two-step",
        threads: int | None = None,
        precision: Precision = "auto",
        batch_size: int | None = None,
        **choices: Unpack[DrawChoices],
    ) -> Tensor:
        """Draw the missing part of images x (B, C, H, W) in [-1, 1], `draws` times for each.

        mask: (1, H, W) or (B, H, W) bool, True where a pixel is known; by default in the upper
        fraction `keep_top` of the rows. Others: see `sample`; a list of labels has length B.
        Returns (B * draws, C, H, W), the completions of an image one after the other.
        """
        if mask is None and isinstance(x, Tensor):
            mask = top_rows(keep_top, self.image_size).to(x.device)
        asked = partial(resolve, self, x=x, mask=mask, draws=draws, method=method, **choices)
        return self._draw(partial(asked, precision=precision), threads, batch_size)

    @torch.no_grad()
    def denoise(
        self,
        x_tilde: Tensor,
        *,
        method: Method = "two-step",
        threads: int | None = None,
        precision: Precision = "auto",
        **choices: Unpack[Choices],
    ) -> Tensor:
        """Denoise images x~ (B, C, H, W): the second step of `sample`; by default without a class.

        Raises ValueError for images of another size.
        """
        asked = partial(resolve, self, x_tilde=x_tilde, method=method, **choices)
        return self._draw(partial(asked, precision=precision), threads)

    def _draw(
        self, asked: Callable[[], Draw], threads: int | None, batch_size: int | None = None
    ) -> Tensor:
        """The images of a draw, at most `batch_size` at a time."""
        if batch_size is not None:
            check_number("batch_size", batch_size)
        with torch_threads(threads):
            whole, drawn = asked(), []
            n = len(whole.indices)
            for part in batches(n, batch_size or n):
                with portion(len(part) / n):
                    drawn.append(draw(whole.part(part)))
        return torch.cat(drawn)

    def single_step(
        self, x_tilde: Tensor, *, label: ClassLabel | None = None, guidance: float = 0.0
    ) -> Tensor:
        """The posterior mean E[x | x~] = x~ + scale**2 * grad log p(x~) (Tweedie's formula).

        It is `denoise` with the method "single-step". guidance extrapolates gradients, those with
        and those without the class, instead of mixtures. The result carries no gradient.
        Raises ValueError for smoothing that is not Gaussian.
        """
        return self.denoise(x_tilde, method="single-step", label=label, guidance=guidance)

    @torch.no_grad()
    def elbo(
        self,
        x: Tensor,
        *,
        label: ClassLabel | None = None,
        n_noise: int = 1,
        importance_weighted: bool = False,
        seed: int | None = 0,
        first_index: int = 0,
        top_classes: int | None = TOP_CLASSES,
    ) -> Tensor:
        """A lower bound on log p(x), from draws of x~ for each image: (B,), nats.

        n_noise, importance_weighted, top_classes: of `forward`, which says more. The noise of row b
        is a function of (seed, first_index + b, draw); seed=None draws one, as samplers do.
        Images are computed in batches, so that memory does not grow with B. The result carries no
        gradient.
        """
        bound, labels = self._measured(x, label, n_noise, top_classes)
        seed, bounds = drawn_seed() if seed is None else seed, []
        for part in batches(len(x), BOUND_IMAGES) or [range(0)]:
            images = slice(part.start, part.stop)
            own = None if labels is None else labels[images]
            draws = log_weights(bound, x[images], own, n_noise, seed, first_index + part.start)
            bounds.append(log_mean_exp(draws) if importance_weighted else draws.mean(0))
            advance_to(part.stop / max(1, len(x)))
        return torch.cat(bounds)

    def forward(
        self,
        x: Tensor,
        *,
        label: ClassLabel | None = None,
        n_noise: int = 1,
        importance_weighted: bool = False,
        seed: int | None = None,
        first_index: int | None = None,
        top_classes: int | None = TOP_CLASSES,
    ) -> Tensor:
        """The bound of `elbo` with gradients in the weights of both models and in x: (B,), nats.

        Each of `n_noise` draws of x~ gives a log-weight log p(x~) - log q(x~ | x) + log p(x | x~).
        Their mean, which is returned, estimates the evidence lower bound. With
        `importance_weighted` the log of the mean weight is returned, which is tighter in
        expectation. With a discretized denoiser it bounds the log-probability of bytes; with a
        continuous one a log-density in units of [-1, 1].

        label: for a pair with classes, as in `PixelCNNpp.forward`; it then bounds log p(x | label).
        Without a label a weight is summed over classes by their shares of the training images.
        top_classes: how many classes the sum has, chosen for each draw by
        `dsmooth.bound.likely_classes`; None: all. A sum over fewer classes is a lower bound of the
        whole sum. With 3 it takes as long as 5.4 passes of the noisy model, and loses 0.00034
        bits/dim (`mnist`, 30 classes) and 0.00014 (`mnist-classes`, 10), measured on 1,000 test
        images.

        Each call draws fresh noise from torch's generator, unless `seed` or `first_index` is given
        (then the other one is 0, and the noise is that of `elbo`). Dropout is never used, even in
        training mode. `(-pair(x)).mean().backward()` tunes both models. Raises ValueError for
        images of another size or outside [-1, 1], or, with a discretized denoiser, for values that
        are not bytes.
        """
        bound, labels = self._measured(x, label, n_noise, top_classes)
        draws = log_weights(bound, x, labels, n_noise, seed, first_index)
        return log_mean_exp(draws) if importance_weighted else draws.mean(0)

    def bound(self, top_classes: int | None = TOP_CLASSES) -> Bound:
        """What the bounds of this pair are computed by; top_classes: of `forward`."""
        pair, log_prior = in_evaluation(self), self.log_prior
        if top_classes is None or top_classes + GRADIENT_PASSES >= len(log_prior):
            top_classes = len(log_prior)
        return Bound(pair.noisy, pair.denoiser, self.smoothing, log_prior, top_classes)

    def _measured(
        self, x: Tensor, label: ClassLabel | None, n_noise: int, top_classes: int | None
    ) -> tuple[Bound, Tensor | None]:
        """The bound, and the labels (B,) int64 on the device or None; checks the arguments."""
        check_numbers(n_noise=(n_noise,), top_classes=(1 if top_classes is None else top_classes,))
        shape = "B", self.noisy.config.image_channels, *self.image_size
        check_images("x", x, shape, self.device)
        check_scale("x", x, as_bytes=self.denoiser.config.likelihood == "discretized")
        known = label is not None
        labels = labels_of(label, self.classes, len(x), self.device) if known else None
        return self.bound(top_classes), labels

    @property
    def log_prior(self) -> Tensor:
        """log p(class) of each class, by the shares in the training images: (n_classes,)."""
        dtype = torch.promote_types(self.dtype, torch.float32)
        return log_prior(self.classes, self.device).to(dtype)

    @property
    def device(self) -> torch.device:
        """Device of the models."""
        return self.noisy.device

    @property
    def dtype(self) -> torch.dtype:
        """Data type of the models' weights."""
        return self.noisy.dtype

    @property
    def classes(self) -> Classes | None:
        """The classes of whichever model has some."""
        return self.noisy.config.classes or self.denoiser.config.classes

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the classes, empty for a pair without classes."""
        return self.classes.names if self.classes else ()

    @property
    def n_classes(self) -> int:
        """Number of classes, 0 for a pair without classes."""
        return len(self.class_names)

    def __repr__(self) -> str:
        """Both networks, the smoothing and the images in a few lines; not every layer."""
        shape = " x ".join(map(str, (self.noisy.config.image_channels, *self.image_size)))
        return (
            f"SmoothedPair(\n  noisy: {self.noisy.summary()}\n"
            f"  denoiser: {self.denoiser.summary()}\n"
            f"  smoothing: {self.smoothing.kind} of scale {self.smoothing.scale}\n"
            f"  images: {shape}, on {self.device}\n)"
        )
