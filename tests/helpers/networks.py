"""Small networks whose every weight matters, pairs of them, and their inputs."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from functools import cache
from typing import Any

import torch
from torch import Tensor

import dsmooth
from dsmooth.config import Classes

CLASSES = 3
# Distributions of a pixel, as fields of a ModelConfig.
# A network that sees bytes and, of grey images, has an atom for each.
BYTES: dict[str, Any] = {
    "likelihood": "discretized", "atoms": "all", "fourier_features": 8, "head_filters": 5,
}  # fmt: skip
GAUSSIAN: dict[str, Any] = {"likelihood": "gaussian", "smoothing_scale": 0.3}
MIXTURES: dict[str, dict[str, Any]] = {
    "continuous": {},
    "discretized": {"likelihood": "discretized"},
    "gaussian": GAUSSIAN,
    "bytes": BYTES,
}


def numbered(count: int, dropout: float = 0.1) -> Classes | None:
    """Classes with their numbers as names; None for 0."""
    return Classes(tuple(map(str, range(count))), (), dropout) if count else None


def tiny_config(
    conditioning: str = "none",
    likelihood: str = "continuous",
    channels: int = 1,
    *,
    n_classes=0,
    **settings: Any,
) -> dsmooth.ModelConfig:
    settings.setdefault("classes", numbered(n_classes))
    settings = {"n_filters": 6, "n_resnet": 1, "n_mix": 3, "context_layers": 1, **settings}
    if channels == 3:
        settings.pop("atoms", None)
    kind = {"image_channels": channels, "conditioning": conditioning, "likelihood": likelihood}
    return dsmooth.ModelConfig(**settings, **kind)


def network(conditioning: str = "none", **settings: Any) -> dsmooth.PixelCNNpp:
    """A random network in evaluation mode, whose streams have unit variance and whose pixels stay
    near [-1, 1]. settings: as `tiny_config` takes them."""
    model = copy.deepcopy(_network(tiny_config(conditioning, **settings)))
    torch.manual_seed(0)
    return model


@cache
def _network(config: dsmooth.ModelConfig) -> dsmooth.PixelCNNpp:
    torch.manual_seed(0)
    model = dsmooth.PixelCNNpp(config).eval()
    x = 0.5 * torch.randn(8, config.image_channels, 8, 8)
    context = None if config.conditioning == "none" else x + 0.3 * torch.randn_like(x)
    label = torch.arange(8) % config.n_classes if config.n_classes else None
    model.initialize(x, context, label)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name.endswith("condition_weight"):
                weight.normal_(std=0.3)
        model.head.weight_g.mul_(0.3)
        model.head.bias.mul_(0.3)
        n_mix = config.n_mix
        components = model.head.bias[n_mix + config.n_atoms :].view(
            config.image_channels, -1, n_mix
        )
        components[:, 1] -= 2  # log-scales
    return model


def tiny_pair(
    likelihood: str = "discretized", conditioning: str = "concat", *, classes=(0, 0)
) -> dsmooth.SmoothedPair:
    """A pair of them for images of 8 x 8. classes: of the noisy model and of the denoiser."""
    noisy = network(n_classes=classes[0])
    denoiser = network(conditioning, likelihood=likelihood, n_classes=classes[1])
    return dsmooth.SmoothedPair(noisy, denoiser, dsmooth.GaussianSmoothing(0.5), (8, 8)).eval()


def log_weight(
    pair: dsmooth.SmoothedPair, x: Tensor, label: Any = None, *, seed: int = 0, repeat: int = 0
) -> dict[str, Tensor]:
    """The terms of one draw's log-weight: each (B,), nats."""
    x_tilde = pair.smoothing.sample(x, seed=seed, repeat=repeat)
    models = pair.noisy, pair.denoiser
    noisy, denoiser = (label if model.config.classes else None for model in models)
    return {
        "noisy": pair.noisy.log_prob(x_tilde, label=noisy),
        "smoothing": -pair.smoothing.log_prob(x_tilde, x),
        "denoiser": pair.denoiser.log_prob(x, x_tilde, denoiser),
    }


def images(n: int = 3, channels: int = 1, size: tuple[int, int] = (8, 8)) -> Tensor:
    """Random bytes."""
    generator = torch.Generator().manual_seed(1)
    return dsmooth.round_to_bytes(torch.rand(n, channels, *size, generator=generator) * 2 - 1)


def inputs(
    conditioning: str, *, batch: int = 3, size: tuple[int, int] = (8, 8), channels: int = 1
) -> tuple[Tensor, Tensor | None, Tensor]:
    """Images, their contexts for a denoiser, and labels of classes in turn."""
    x, context = images(batch, channels, size), None
    if conditioning != "none":
        context = x + 0.5 * torch.randn(x.shape, generator=torch.Generator().manual_seed(2))
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
