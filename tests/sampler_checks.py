"""Small networks, and the law of every sampler: each pixel is the one that its network draws."""

from __future__ import annotations

import copy

import torch
from torch import Tensor

import dsmooth
from dsmooth.functional import logistic_mixture_sample, use_impl
from dsmooth.functional.logistic_mixture import split_mixture
from dsmooth.nn import PixelCNNpp
from dsmooth.philox import Stage, image_words, to_uniform
from dsmooth.sampling import CachedSampler

SEED, FIRST = 2**40 + 5, 2**32 - 2


def network(
    *,
    channels: int = 1,
    n_filters: int = 6,
    n_resnet: int = 1,
    n_mix: int = 3,
    conditioning: str = "none",
    likelihood: str = "continuous",
    context_layers: int = 1,
    context_filters: int | None = None,
) -> PixelCNNpp:
    """A random network whose streams have unit variance and whose pixels stay near [-1, 1]."""
    torch.manual_seed(0)
    config = dsmooth.ModelConfig(
        image_channels=channels,
        n_filters=n_filters,
        n_resnet=n_resnet,
        n_mix=n_mix,
        conditioning=conditioning,
        likelihood=likelihood,
        context_layers=context_layers,
        context_filters=context_filters,
    )
    model = PixelCNNpp(config).eval()
    x = 0.5 * torch.randn(8, channels, 8, 8)
    model.initialize(x, None if conditioning == "none" else x + 0.3 * torch.randn_like(x))
    with torch.no_grad():
        model.head.weight_g.mul_(0.3)
        model.head.bias.mul_(0.3)
        model.head.bias[n_mix:].view(channels, -1, n_mix)[:, 1] -= 2  # log-scales
    return model


def context_for(model: PixelCNNpp, n: int, height: int, width: int) -> Tensor | None:
    if model.config.conditioning == "none":
        return None
    generator = torch.Generator().manual_seed(1)
    return 0.5 * torch.randn(n, model.config.image_channels, height, width, generator=generator)


def uniforms_of(model: PixelCNNpp, n: int, height: int, width: int, first: int) -> Tensor:
    conditioned = model.config.conditioning != "none"
    stage = Stage.SAMPLE_CONDITIONED if conditioned else Stage.SAMPLE
    words = image_words(n, height * width, seed=SEED, first_index=first, stage=stage)
    return to_uniform(words).view(n, height, width, 4).permute(0, 3, 1, 2)


@torch.no_grad()
def teacher_forced(
    model: PixelCNNpp, x: Tensor, context: Tensor | None, dtype: torch.dtype, temperature: float
) -> tuple[Tensor, Tensor]:
    """Every pixel of x redrawn from one eager forward on x itself: the pixels, and how near its
    uniform is to a boundary between components (a distance in probability), (B, 1, H, W)."""
    model = copy.deepcopy(model).to(dtype)
    n, channels, height, width = x.shape
    with use_impl("reference"):
        params = model(x.to(dtype), None if context is None else context.to(dtype))
    u = uniforms_of(model, n, height, width, FIRST).to(dtype)
    drawn = logistic_mixture_sample(params, u, channels, model.config.likelihood, temperature)
    logits = split_mixture(params, channels).logits / temperature
    boundaries = torch.softmax(logits, dim=1).cumsum(1)[:, :-1]
    if boundaries.shape[1] == 0:
        return drawn, torch.ones_like(u[:, :1])
    return drawn, (u[:, :1] - boundaries).abs().amin(1, keepdim=True)


def check_teacher_forced(
    sampler: CachedSampler,
    model: PixelCNNpp,
    size: tuple[int, int],
    *,
    temperature: float = 1.0,
    n: int = 3,
) -> None:
    height, width = size
    context = context_for(model, n, height, width)
    x = sampler.sample(
        n,
        height,
        width,
        seed=SEED,
        first_index=FIRST,
        context=None if context is None else context.to(sampler.device),
        temperature=temperature,
    ).cpu()
    model = copy.deepcopy(model).cpu()
    assert x.isfinite().all()
    exact, distance = teacher_forced(model, x, context, torch.float64, temperature)
    eager, _ = teacher_forced(model, x, context, torch.float32, temperature)
    # Rounding may take a discretized value to the next level; a component only at a boundary.
    discretized = model.config.likelihood == "discretized"
    flipped = ((x - exact).abs() > (1.5 / 127.5 if discretized else 1e-3)).any(1, keepdim=True)
    assert (distance[flipped] < 1e-5).all()
    assert flipped.sum() <= 1
    kept = ~(flipped | ((eager - exact).abs() > 1e-3).any(1, keepdim=True)).expand_as(x)
    error, eager_error = ((y - exact)[kept].abs().max() for y in (x, eager))
    rounding = 4 * torch.finfo(torch.float32).eps * exact[kept].abs().max().clamp(min=1)
    if discretized:
        assert ((x - exact).abs()[kept] > 0.5 / 127.5).sum() <= 1  # a level changed
    else:
        assert error <= 2 * eager_error + rounding
