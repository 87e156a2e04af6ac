"""Draws from the logistic mixture follow it."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from dsmooth.functional import logistic_mixture_sample
from dsmooth.functional.logistic_mixture import Mixture
from dsmooth.pixels import value_of
from tests.helpers.data_makers import refuses
from tests.helpers.mixture_cases import (
    each_channels,
    each_likelihood,
    random_case,
    raw_parts,
)

N_DRAWS = 20_000


def uniforms_of(n: int, seed: int = 5) -> Tensor:
    """(1, 4, 1, n) uniforms on the sampler's grid: (integer + 1/2) / 2^23."""
    generator = torch.Generator().manual_seed(seed)
    words = torch.randint(0, 2**23, (1, 4, 1, n), generator=generator)
    return (words.double() + 0.5) * 2.0**-23


def conditional_cdf(x: Tensor, params: Tensor, likelihood: str, place: float) -> list[Tensor]:
    """P(X_c < x_c | earlier colours) per colour, a level's mass at `place` in it: Rosenblatt's."""
    channels = x.shape[1]
    mixture = Mixture.of(params, channels)
    log_weights = torch.log_softmax(mixture.logits, 1)
    transformed = []
    for c in range(channels):
        value = x[:, c : c + 1]
        mean = mixture.means[:, c]
        for earlier, number in enumerate(((), (0,), (1, 2))[c]):
            mean = mean + mixture.coefficients[:, number] * x[:, earlier : earlier + 1]
        log_scale = mixture.log_scales[:, c].clamp(min=-7)
        lower, cdf, upper = (
            torch.sigmoid((value + step / 255 - mean) * torch.exp(-log_scale))
            for step in (-1, 0, 1)
        )
        log_p = torch.log(cdf * (1 - cdf)) - log_scale
        if likelihood == "discretized":
            lower = torch.where(value < -0.999, 0, lower)
            upper = torch.where(value > 0.999, 1, upper)
            cdf, log_p = lower + place * (upper - lower), torch.log(upper - lower)
        transformed.append((torch.softmax(log_weights, 1) * cdf).sum(1).flatten())
        log_weights = log_weights + log_p
    return transformed


def ks_distance(values: Tensor) -> float:
    """Largest distance of the empirical distribution of values from the uniform one."""
    ordered = np.sort(values.numpy())
    n = len(ordered)
    steps = np.arange(n + 1) / n
    return float(max((steps[1:] - ordered).max(), (ordered - steps[:-1]).max()))


@pytest.mark.quick
@each_likelihood
@each_channels
def test_draws_follow_the_mixture(channels: int, likelihood: Any) -> None:
    """Kolmogorov-Smirnov at a level of 1e-6, per colour given the earlier ones."""
    _, params = random_case(channels, "continuous", size=(1, 1, 1), seed=2)
    raw_parts(params, channels)[:, :, 1].clamp_(-4, 0)
    params = params.expand(-1, -1, -1, N_DRAWS)
    x = logistic_mixture_sample(params, uniforms_of(N_DRAWS), channels, likelihood)
    assert x.shape == (1, channels, 1, N_DRAWS)
    place = torch.rand(1, 1, 1, N_DRAWS, generator=torch.Generator().manual_seed(9))
    limit = math.sqrt(-math.log(1e-6 / 2) / 2 / N_DRAWS)
    for u in conditional_cdf(x, params, likelihood, place):
        assert ks_distance(u) < limit
    wrong = conditional_cdf(x + 0.05, params, "continuous", 0.5)
    assert max(ks_distance(u) for u in wrong) > limit  # the test can fail


def test_samples_have_the_atoms_weights_and_the_gaussians_quantiles() -> None:
    n = 40_000
    uniforms = uniforms_of(n).permute(3, 1, 2, 0)
    generator = torch.Generator().manual_seed(0)
    params = torch.randn(1, 3 * 2 + 256, 1, 1, generator=generator, dtype=torch.float64)
    params[:, [2 + 3, 2 + 200]] += 6
    params_of_all = params.expand(n, -1, -1, -1)
    x = logistic_mixture_sample(params_of_all, uniforms, 1, "discretized", 0.7, atoms="all")
    weights = torch.softmax(params[0, : 2 + 256, 0, 0] / 0.7, 0)
    choices = uniforms[:, 0].flatten().contiguous()
    chosen = torch.bucketize(choices, weights.cumsum(0)[:-1], right=True)
    for level in (3, 200):
        at_level = (x == value_of(torch.tensor(level, dtype=x.dtype))).flatten()
        assert at_level[chosen == 2 + level].all()
        assert at_level.double().mean() == pytest.approx(float(weights[2 + level]), abs=0.01)
    params = torch.tensor([0.0, 0.4, math.log(0.3)], dtype=torch.float64).view(1, 3, 1, 1)
    params = params.expand(n, -1, -1, -1)
    x = logistic_mixture_sample(params, uniforms, 1, "gaussian", 0.5, smoothing_scale=0.4)
    expected = 0.4 + 0.5 * 0.5 * torch.special.ndtri(uniforms[:, 1:2])
    torch.testing.assert_close(x, expected, rtol=1e-12, atol=1e-12)


def test_the_ends_of_float32_draw_something_finite() -> None:
    params = torch.tensor([0.0, 2e38, -2e38, -1, 1, 2, -9, -9, -9]).view(1, 9, 1, 1)
    x = logistic_mixture_sample(params, torch.full((1, 4, 1, 1), 0.5), 1, temperature=0.3)
    assert x.item() == 1
    ends = torch.tensor([0.5 * 2**-23, 1 - 0.5 * 2**-23]).expand(1, 4, 1, 2)
    assert logistic_mixture_sample(torch.zeros(1, 30, 1, 2), ends, 1).isfinite().all()


@pytest.mark.parametrize("temperature", [1e-300, 1e-45, 1e-38, 1e-7])
@pytest.mark.parametrize("shared", [-30.0, 20.0])
def test_the_coldest_draw_is_the_likeliest_component(shared: float, temperature: float) -> None:
    params = torch.tensor([shared - 0.5, shared, -0.4, 0.6, -3.0, -3.0]).view(1, 6, 1, 1)
    uniforms = torch.tensor([0.01, 0.99]).expand(1, 4, 1, 2)
    x = logistic_mixture_sample(params.expand(-1, -1, -1, 2), uniforms, 1, temperature=temperature)
    torch.testing.assert_close(x, torch.full((1, 1, 1, 2), 0.6))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"uniforms": torch.rand(1, 3, 2, 3)}, r"uniforms must have shape \(1, 4, 2, 3\)"),
        ({"uniforms": torch.ones(1, 4, 2, 3).long()}, "uniforms must be a floating-point"),
        ({"params": torch.ones(1, 7, 2, 3)}, "params must have shape"),
        ({"image_channels": 2}, "`image_channels` must be one of 1, 3, got 2"),
        ({"temperature": 0.0}, "temperature must be positive and finite, got 0.0"),
        ({"temperature": math.inf}, "temperature must be positive and finite, got inf"),
        ({"likelihood": "other"}, "`likelihood` must be one of"),
        ({"atoms": (0, 1)}, r"`atoms` must be one of \(\), all, got \(0, 1\)"),
        ({"atoms": "all", "image_channels": 3}, "grey images only, got 3 channels"),
        ({"likelihood": "gaussian", "smoothing_scale": -1.0}, "smoothing_scale"),
    ],
)
def test_wrong_arguments_are_refused(changes: dict[str, Any], message: str) -> None:
    good = {"params": torch.zeros(1, 6, 2, 3), "uniforms": torch.full((1, 4, 2, 3), 0.5)}
    good |= {"image_channels": 1, "likelihood": "discretized"}
    logistic_mixture_sample(**good)
    refuses(message, logistic_mixture_sample, error=(ValueError, TypeError), **{**good, **changes})
