"""The invariant of every sampler: each pixel is the one that its network draws."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor

from dsmooth.functional import concat_elu, logistic_mixture_sample, use_impl
from dsmooth.functional.logistic_mixture import MIN_LOG_SCALE, Mixture
from dsmooth.nn import PixelCNNpp
from dsmooth.nn.layers import WeightNormConv
from dsmooth.nn.pixelcnnpp import Dropout, Encoded
from dsmooth.philox import Stream, image_words, to_uniform
from dsmooth.sampling import CachedSampler
from tests.helpers.networks import network

SEED, FIRST = 2**40 + 5, 2**32 - 2


def labels_of(n: int, n_classes: int, *, hidden: bool = False) -> Tensor | None:
    """Classes in turn; hidden: no class for every second image; None without classes."""
    if n_classes == 0:
        return None
    labels = (torch.arange(n) * 2 + 1) % n_classes
    return torch.where(torch.arange(n) % 2 == 0, labels, -1) if hidden else labels


def context_for(model: PixelCNNpp, n: int, height: int, width: int) -> Tensor | None:
    if model.config.conditioning == "none":
        return None
    generator = torch.Generator().manual_seed(1)
    return 0.5 * torch.randn(n, model.config.image_channels, height, width, generator=generator)


@torch.no_grad()
def teacher_forced(
    model: PixelCNNpp, x: Tensor, context, dtype, temperature: float, label=None, guidance=0.0
) -> tuple[Tensor, Tensor]:
    """Every pixel of x redrawn from one eager forward on x itself: the pixels, and how near its
    uniform is to a boundary between components (a distance in probability), (B, 1, H, W)."""
    model = copy.deepcopy(model).to(dtype)
    n, channels, height, width = x.shape
    with use_impl("reference"):
        given = (x.to(dtype), None if context is None else context.to(dtype))
        params = model(*given, label)
        if guidance:
            other = model(*given, -1)
            for mixture in (params, other):  # log-scales below the least one mean the same
                parts = Mixture.of(mixture, channels, model.config.n_atoms)
                parts.log_scales.clamp_(min=MIN_LOG_SCALE)
            params = other + (1 + guidance) * (params - other)
    conditioned = model.config.conditioning != "none"
    stream = Stream.SAMPLE_CONDITIONED if conditioned else Stream.SAMPLE
    words = image_words(n, height * width, seed=SEED, first_index=FIRST, stream=stream)
    u = to_uniform(words).to(dtype).view(n, height, width, 4).permute(0, 3, 1, 2)
    mixture = model.config.mixture
    drawn = logistic_mixture_sample(params, u, channels, temperature=temperature, **mixture)
    logits = Mixture.of(params, channels, model.config.n_atoms).logits / temperature
    boundaries = torch.softmax(logits, dim=1).cumsum(1)[:, :-1]
    if boundaries.shape[1] == 0:
        return drawn, torch.ones_like(u[:, :1])
    return drawn, (u[:, :1] - boundaries).abs().amin(1, keepdim=True)


@torch.no_grad()
def network_of_biases(n_filters: int, head_filters: int = 0) -> PixelCNNpp:
    """A grey network whose layers are what its biases make, at every pixel but the first ones."""
    model = network(n_filters=n_filters, n_mix=1, head_filters=head_filters)
    for name, layer in model.named_modules():
        if isinstance(layer, WeightNormConv) and layer is not model.head:
            layer.weight_g.zero_()
            layer.bias.normal_(std=0.0 if name.startswith("stem") else 0.5)
    return model


@torch.no_grad()
def check_head_in_float32(sampler: CachedSampler, model: PixelCNNpp) -> None:
    """The parameters of a bfloat16 sampler on `network_of_biases`, which near temperature 0 are its
    pixels, are those of a head in float32, but for the hidden layer's rounding to bfloat16."""
    x = sampler.sample(1, 4, 4, temperature=1e-7).cpu()
    exact = copy.deepcopy(model).cpu().double()
    image = torch.zeros(x.shape, dtype=torch.float64)
    seen = exact._seen(image)
    ul = exact._streams(seen, Encoded(), Dropout())[-1][1]
    operands, weight = torch.nn.functional.elu(ul), exact.head.affine()[0][1].view(1, -1, 1, 1)
    hidden = operands[:, :0]
    if exact.hidden is not None:
        hidden = concat_elu(exact.hidden(seen, operands))
        operands = torch.cat([hidden, operands], 1)
    mean = exact.head(operands)[:, 1:2]
    rounding = 4 * torch.finfo(torch.float32).eps * ((weight * operands).abs().sum(1, True) + 1)
    in_half = (weight[:, : hidden.shape[1]] * hidden).abs().sum(1, True)
    rounding += torch.finfo(torch.bfloat16).eps / 2 * in_half
    assert ((x - mean).abs() <= rounding).all()
    if exact.hidden is not None:
        return
    # Operands in bfloat16 would show.
    rounded = (operands.bfloat16().double() * weight.bfloat16().double()).sum(1, True)
    assert (rounded + exact.head.bias[1] - mean).abs().max() > 10 * rounding.max()


def check_teacher_forced(
    sampler: CachedSampler, model, size, *, temperature=1.0, n=3, label=None, guidance=0.0
) -> None:
    context = context_for(model, n, *size)
    given = {"context": None if context is None else context.to(sampler.device), "label": label}
    where: dict[str, Any] = {"seed": SEED, "first_index": FIRST, "temperature": temperature}
    x = sampler.sample(n, *size, guidance=guidance, **where, **given).cpu()
    model = copy.deepcopy(model).cpu()
    assert x.isfinite().all()
    exact, distance = teacher_forced(model, x, context, torch.float64, temperature, label, guidance)
    eager, _ = teacher_forced(model, x, context, torch.float32, temperature, label, guidance)
    # Rounding may take a discretized value to the next level; a component only at a boundary.
    discretized = model.config.likelihood == "discretized"
    flipped = ((x - exact).abs() > (1.5 / 127.5 if discretized else 1e-3)).any(1, keepdim=True)
    assert (distance[flipped] < 1e-5).all()
    assert flipped.sum() <= 1
    kept = ~(flipped | ((eager - exact).abs() > 1e-3).any(1, keepdim=True)).expand_as(x)
    error, eager_error = ((y - exact)[kept].abs().max() for y in (x, eager))
    # Guidance w adds 1 + w and w times the roundings of two passes.
    rounding = 4 * (1 + 2 * guidance) * torch.finfo(torch.float32).eps
    rounding *= exact[kept].abs().max().clamp(min=1)
    if discretized:
        assert ((x - exact).abs()[kept] > 0.5 / 127.5).sum() <= 1  # a level changed
    else:
        assert error <= 2 * eager_error + rounding
