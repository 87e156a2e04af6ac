"""A pair of small networks."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

import dsmooth
from dsmooth.sampling.ladder import noise_terms


def tiny_config(conditioning: str, likelihood: str, channels: int = 1) -> dsmooth.ModelConfig:
    small = {"n_filters": 6, "n_resnet": 1, "n_mix": 3, "dropout": 0.0, "context_layers": 1}
    kind = {"image_channels": channels, "conditioning": conditioning, "likelihood": likelihood}
    return dsmooth.ModelConfig(**small, **kind)


def tiny_pair(
    likelihood: str = "discretized", conditioning: str = "concat"
) -> dsmooth.SmoothedPair:
    torch.manual_seed(0)
    noisy = dsmooth.PixelCNNpp(tiny_config("none", "continuous"))
    denoiser = dsmooth.PixelCNNpp(tiny_config(conditioning, likelihood))
    with torch.no_grad():
        noisy.head.weight_g.mul_(0.3)
        denoiser.head.weight_g.mul_(0.3)
    smoothing = dsmooth.GaussianSmoothing(0.5)
    return dsmooth.SmoothedPair(noisy, denoiser, smoothing, (8, 8)).eval()


def log_weight(
    pair: dsmooth.SmoothedPair, x: Tensor, label: Any = None, *, seed: int = 0, repeat: int = 0
) -> dict[str, Tensor]:
    """The terms of one draw's log-weight of a pair of one level: each (B,), nats."""
    rungs, where = pair.rungs(), {"seed": seed, "first_index": 0, "repeat": repeat}
    x_tilde, noisy, smoothing = noise_terms(rungs, x, label, **where)
    denoiser = rungs[0].denoiser_log_prob(x, x_tilde, label)
    return {"noisy": noisy, "smoothing": smoothing, "denoiser": denoiser}
