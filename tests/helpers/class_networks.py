"""Small networks whose every weight matters, and their inputs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

import dsmooth

CLASSES = 3


def conditional(
    conditioning: str = "none",
    *,
    n_classes: int = CLASSES,
    channels: int = 1,
    **settings: Any,
) -> dsmooth.PixelCNNpp:
    """A network in evaluation mode, with projections that are not zero."""
    torch.manual_seed(0)
    small = {"n_filters": 6, "n_resnet": 1, "n_mix": 3, "context_layers": 1, "dropout": 0.0}
    settings = {**small, "conditioning": conditioning, "n_classes": n_classes, **settings}
    model = dsmooth.PixelCNNpp(dsmooth.ModelConfig(image_channels=channels, **settings)).eval()
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name.endswith("condition_weight"):
                weight.normal_(generator=generator)
    return model


def make_pair(noisy: int = CLASSES, denoiser: int = CLASSES) -> dsmooth.SmoothedPair:
    """A pair of them, of so many classes."""
    models = [
        conditional("none", n_classes=noisy),
        conditional("concat", n_classes=denoiser, likelihood="discretized"),
    ]
    return dsmooth.SmoothedPair(*models, dsmooth.GaussianSmoothing(0.5), (8, 8))


def inputs(
    conditioning: str, *, batch: int = 3, size: tuple[int, int] = (8, 8), channels: int = 1
) -> tuple[Tensor, Tensor | None, Tensor]:
    """Images, their contexts for a denoiser, and labels of classes in turn."""
    generator = torch.Generator().manual_seed(1)
    x = dsmooth.round_to_bytes(torch.rand(batch, channels, *size, generator=generator) * 2 - 1)
    context = None
    if conditioning != "none":
        context = x + 0.5 * torch.randn(x.shape, generator=generator)
    return x, context, torch.arange(batch) % CLASSES


def with_classes(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A checkpoint of the older ports with a projection of `CLASSES` classes in every gated resnet.

    The golden values of classes are of these projections.
    """
    generator = torch.Generator().manual_seed(7)
    bias = ".conv_out.conv.bias"
    projections = {
        key.replace(bias, ".hw"): 0.5 * torch.randn(CLASSES, len(value), generator=generator)
        for key, value in sorted(state.items())
        if key.endswith(bias)
    }
    return {**state, **projections}
