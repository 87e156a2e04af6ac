"""Two-step sampling: x~ from the noisy model, then x from the denoiser or as the posterior mean."""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor

from ..config import Classes, Precision, classes_of
from ..errors import SettingError
from ..nn import PixelCNNpp
from ..nn.gradients import input_gradient
from ..nn.images import check_scale
from ..nn.weights import in_evaluation
from ..pictures import is_diverged
from ..progress import Progress
from ..smoothing import GaussianSmoothing, Smoothing
from .cached import draw_network
from .classes import draw_classes
from .known import KnownPixels
from .request import Request, check_guidance


def draw_two_steps(
    models: tuple[PixelCNNpp, PixelCNNpp],
    smoothing: Smoothing,
    size: tuple[int, int],
    request: Request,
    progress: Progress | None = None,
    precision: Precision = "auto",
) -> Tensor:
    """The images (count, C, H, W) of a request, by a noisy model and a denoiser.

    x~ ~ p(x~), unless the request gives x~, and then x of each x~. An image is NaN where its x~
    diverged. Other arguments: see `pair.draw`.
    """
    (noisy, denoiser), x_tilde, known = models, request.x_tilde, request.known
    classes = classes_of(noisy.config, denoiser.config)
    labels = None if request.class_of_known else request.labels(classes, noisy.device)
    if known is not None:
        as_bytes = denoiser.config.likelihood == "discretized"
        check_scale("known", known.values, as_bytes=as_bytes)
    steps = 2 if x_tilde is None and request.method == "two-step" else 1

    def step(
        network: PixelCNNpp, known: KnownPixels | None, context: Tensor | None = None
    ) -> Tensor:
        nonlocal labels
        if request.class_of_known and labels is None and known and network.config.condition_size:
            labels = draw_classes(network, request, known, classes, context)
        # Without classes both models refuse guidance, and one without gets no label.
        guided = network.config.condition_size or not classes.number
        model_request = replace(
            request,
            known=known,
            label=conditioning_label(network, classes, labels),
            guidance=request.guidance if guided else 0.0,
        )
        done_before = 0 if context is None else steps - 1
        report = progress and (lambda done: progress((done_before + done) / steps))
        return draw_network(network, model_request, size, context, report, precision)

    if x_tilde is None:
        noisy_known = known
        if known is not None:
            seed, first = request.seed, request.first_index
            images = smoothing.sample(known.images, seed=seed, first_index=first)
            noisy_known = KnownPixels(images, known.mask)
        x_tilde = step(noisy, noisy_known)
    if request.method == "noisy":
        return x_tilde
    diverged = is_diverged(x_tilde).view(-1, *[1] * (x_tilde.ndim - 1))
    x_tilde = torch.where(diverged, 0.0, x_tilde)
    if request.method == "single-step":
        x = posterior_mean(models, smoothing, x_tilde.to(noisy.dtype), labels, request.guidance)
        x = x if known is None else known.keep(x)
    else:
        x = step(denoiser, known, x_tilde)
    return torch.where(diverged, math.nan, x)


def posterior_mean(
    models: tuple[PixelCNNpp, PixelCNNpp],
    smoothing: Smoothing,
    x_tilde: Tensor,
    label: Tensor | None,
    guidance: float,
) -> Tensor:
    """E[x | x~] of x~ (B, C, H, W); arguments and errors: see `SmoothedPair.single_step`."""
    noisy, classes = models[0], classes_of(*(model.config for model in models))
    if not isinstance(smoothing, GaussianSmoothing):
        raise ValueError(f"single-step denoising needs gaussian smoothing, got {smoothing.kind}")
    if guidance and not classes.number:
        raise SettingError("guidance", "needs a model with classes; this pair has none")
    if guidance and noisy.config.condition_size:
        check_guidance(noisy.config)
    label = conditioning_label(noisy, classes, label)
    gradient = input_gradient(in_evaluation(noisy), x_tilde, label, guidance)
    return x_tilde + smoothing.scale**2 * gradient


def conditioning_label(
    network: PixelCNNpp, classes: Classes, label: Tensor | None
) -> Tensor | None:
    """`label` as one of the two models takes it: None for a model without classes.

    classes: of the pair. Raises ValueError for a label where neither model has classes.
    """
    if label is not None and not classes.number:
        raise ValueError("label was given, but neither model of the pair has classes")
    return label if network.config.condition_size else None
