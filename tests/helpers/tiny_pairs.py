"""A pair of small networks, and pairs of single pixels whose likelihood is known by quadrature."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

import dsmooth
from dsmooth.functional import logistic_mixture_log_prob as log_prob
from dsmooth.nn.layers import WeightNormConv


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


def make_pixelwise(model: dsmooth.PixelCNNpp) -> None:
    """Cut every connection between pixels: parameters become a function of the context there.

    Of each kernel only the tap on the pixel itself stays; what reads x and what comes from lower
    resolutions has gain zero.
    """
    with torch.no_grad():
        for name, layer in model.named_modules():
            if not isinstance(layer, WeightNormConv):
                continue
            if name.startswith(("stem_", "downsize", "upsize")):
                layer.weight_g.zero_()
                continue
            rows, columns = layer.weight_v.shape[-2:]
            row = rows // 2 if name.startswith("encoder") else rows - 1
            column = columns - 1 if columns == 2 else columns // 2
            tap = layer.weight_v[..., row, column].clone()
            layer.weight_v.zero_()
            layer.weight_v[..., row, column] = tap


def log_likelihood_by_quadrature(pair: dsmooth.SmoothedPair, levels: Tensor) -> Tensor:
    """log p(x) of one pixel, the integral over x~ of p(x~) p(x | x~), for pixelwise models."""
    nodes = torch.linspace(-60, 60, 12_001, dtype=torch.float64)
    grid = nn.functional.pad(nodes, (0, -len(nodes) % 16)).view(-1, 1, 4, 4)
    zeros = torch.zeros_like(grid)
    noisy_params = pair.noisy(zeros)
    prior = log_prob(grid, noisy_params, **pair.noisy.config.mixture).flatten()[: len(nodes)]
    params = pair.denoiser(zeros, context=grid)
    result = []
    for level in levels.tolist():
        x = torch.full_like(grid, level)
        log_p = log_prob(x, params, **pair.denoiser.config.mixture)
        joint = prior + log_p.flatten()[: len(nodes)]
        result.append(torch.logsumexp(joint, 0) + math.log(nodes[1] - nodes[0]))
    return torch.stack(result)
