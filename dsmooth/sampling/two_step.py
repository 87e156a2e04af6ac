"""Two-step sampling: x~ from the noisy model, then x from the denoiser or as the posterior mean."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Protocol

import torch
from torch import Tensor

from ..config import Classes, ModelConfig, Precision
from ..nn import PixelCNNpp
from ..nn.gradients import input_gradient
from ..nn.images import check_scale
from ..nn.weights import in_evaluation
from ..pictures import is_diverged
from ..progress import portion
from ..smoothing import GaussianSmoothing, Smoothing
from .cached import draw_network
from .known import KnownPixels
from .request import Request, check_guidance


class Pair(Protocol):
    """The parts of a `SmoothedPair` that draw."""

    noisy: PixelCNNpp
    denoiser: PixelCNNpp
    smoothing: Smoothing
    image_size: tuple[int, int]


Model = Pair | PixelCNNpp


@torch.no_grad()
def draw(
    model: Model,
    request: Request,
    precision: Precision = "auto",
) -> Tensor:
    """The images (count, C, H, W) of a request, of a pair or of one network with an image size.

    A pair draws x~ ~ p(x~), unless the request gives x~, and then x of each x~. An image is NaN
    where its x~ diverged. precision: as in `SmoothedPair.sample`.
    """
    if isinstance(model, PixelCNNpp):
        assert model.image_size is not None  # checked earlier
        return draw_network(model, request, model.image_size, None, precision)
    noisy, denoiser, size = model.noisy, model.denoiser, model.image_size
    classes = noisy.config.classes or denoiser.config.classes
    if request.guidance and request.method != "two-step":
        check_guidance(noisy.config)  # the only model that these use
    known, x_tilde = request.known, request.x_tilde
    labels = request.labels(classes, noisy.device)
    if known is not None:
        check_scale("known", known.values, as_bytes=denoiser.config.likelihood == "discretized")
    if x_tilde is None:
        seen = known
        if known is not None:
            seed, index = request.seed, request.first_index
            images = model.smoothing.sample(known.images, seed=seed, first_index=index)
            seen = KnownPixels(images, known.mask)
        step = request_of_step(request, noisy.config, classes, seen, labels)
        with portion(0.5 if request.method == "two-step" else 1.0):
            x_tilde = draw_network(noisy, step, size, None, precision)
    if request.method == "noisy":
        return x_tilde
    diverged = is_diverged(x_tilde).view(-1, *[1] * (x_tilde.ndim - 1))
    x_tilde = torch.where(diverged, 0.0, x_tilde)
    if request.method == "single-step":
        x = posterior_mean(model, x_tilde.to(noisy.dtype), labels, request.guidance)
        x = x if known is None else known.keep(x)
    else:
        step = request_of_step(request, denoiser.config, classes, known, labels)
        with portion(0.5 if request.x_tilde is None else 1.0):
            x = draw_network(denoiser, step, size, x_tilde, precision)
    return torch.where(diverged, math.nan, x)


def request_of_step(
    request: Request,
    config: ModelConfig,
    classes: Classes | None,
    known: KnownPixels | None,
    labels: Tensor | None,
) -> Request:
    """A request as one model of a pair takes it, with the known pixels and the labels of its step.

    classes: of the pair. A model without classes gets no label, and no guidance if the other model
    has classes.
    """
    guidance = request.guidance if config.classes or not classes else 0.0
    label = conditioning_label(config, classes, labels)
    return replace(request, known=known, label=label, guidance=guidance)


def posterior_mean(pair: Pair, x_tilde: Tensor, label: Tensor | None, guidance: float) -> Tensor:
    """E[x | x~] of x~ (B, C, H, W); arguments and errors: see `SmoothedPair.single_step`."""
    noisy, smoothing = pair.noisy, pair.smoothing
    classes = noisy.config.classes or pair.denoiser.config.classes
    if not isinstance(smoothing, GaussianSmoothing):
        raise ValueError(f"single-step denoising needs gaussian smoothing, got {smoothing.kind}")
    if guidance:
        check_guidance(noisy.config)
    label = conditioning_label(noisy.config, classes, label)
    gradient = input_gradient(in_evaluation(noisy), x_tilde, label, guidance)
    return x_tilde + smoothing.scale**2 * gradient


def conditioning_label(
    config: ModelConfig, classes: Classes | None, label: Tensor | None
) -> Tensor | None:
    """`label` as one of the two models takes it: None for a model without classes.

    classes: of the pair. Raises ValueError for a label where neither model has classes.
    """
    if label is not None and classes is None:
        raise ValueError("label was given, but neither model of the pair has classes")
    return label if config.classes else None
