"""Laws of atoms and Gaussian components in the logistic mixture's Triton kernel, under Triton's
interpreter.

    TRITON_INTERPRET=1 pytest -n0 tests/interpreted/mixture_kinds.py

Run by test_interpreter.py. What holds for every likelihood is in interpreted/logistic_mixture.py.
"""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from dsmooth.functional import logistic_mixture_log_prob, logistic_mixture_log_prob_ref
from dsmooth.kernels.launch import INTERPRETED
from tests.helpers import interpreter_speed  # noqa: F401 - for its effect
from tests.helpers.mixture_cases import (
    LEVELS,
    MIXTURES,
    Gradients,
    assert_as_exact_as_eager,
    avoid_kink,
    float_case,
    random_case,
    value_and_gradients,
    with_atoms,
)

assert INTERPRETED, "run with TRITON_INTERPRET=1"

pytestmark = pytest.mark.grid
each_channels = pytest.mark.parametrize("channels", [1, 3])
each_size = pytest.mark.parametrize(
    ("size", "n_mix"), [((3, 9, 11), 10), ((1, 13, 13), 1)], ids=str
)
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
ATOMS = {j: tuple(97 * i % 256 for i in range(j)) for j in (1, 5, 33, 256)}  # in no order


def run(x: Tensor, params: Tensor, likelihood: Any, **options: Any) -> Gradients:
    return value_and_gradients(
        lambda x, p: logistic_mixture_log_prob(x, p, likelihood, impl="triton", **options),
        x,
        params,
    )


@each_channels
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("sigma", [0.5, 0.02, 30.0])
@each_size
def test_gaussian_as_exact_as_eager(
    size: tuple[int, int, int], n_mix: int, sigma: float, dtype: torch.dtype, channels: int
) -> None:
    x, params = (t.to(dtype) for t in random_case(channels, "gaussian", n_mix=n_mix, size=size))
    avoid_kink(params, channels)
    got = run(x, params, "gaussian", smoothing_scale=sigma)
    assert got[0].dtype == torch.float32
    assert_as_exact_as_eager(got, x, params, "gaussian", smoothing_scale=sigma)


@each_channels
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("n_atoms", [1, 5, 33])
@each_size
def test_atoms_as_exact_as_eager(
    size: tuple[int, int, int], n_mix: int, n_atoms: int, dtype: torch.dtype, channels: int
) -> None:
    atoms = ATOMS[n_atoms]
    x, params = (t.to(dtype) for t in random_case(channels, "discretized", n_mix=n_mix, size=size))
    avoid_kink(params, channels)
    x, params = with_atoms(x, params, atoms)
    got = run(x, params, "discretized", atoms=atoms)
    assert got[0].dtype == torch.float32
    assert_as_exact_as_eager(got, x, params, "discretized", atoms=atoms)


@each_channels
def test_every_level_an_atom(channels: int) -> None:
    atoms = ATOMS[256]
    x, params = (t.float() for t in random_case(channels, "discretized", n_mix=10, size=(3, 9, 11)))
    x, params = with_atoms(x, params, atoms)
    got = run(x, params, "discretized", atoms=atoms)
    assert_as_exact_as_eager(got, x, params, "discretized", atoms=atoms)


@each_channels
@pytest.mark.parametrize("n_mix", [1, 5, 17])
@pytest.mark.parametrize("mixture", MIXTURES)
def test_a_pixel_does_not_see_its_neighbours(mixture: str, n_mix: int, channels: int) -> None:
    """A part of an image, down to one pixel, gets the bits that it gets in the whole."""
    x, params, options = float_case(channels, mixture, n_mix=n_mix, size=(2, 3, 13))
    whole = run(x, params, **options)
    for part in ((slice(1), ..., slice(1), slice(1)), (slice(2), ..., slice(1, 3), slice(4, 11))):
        for got, want in zip(run(x[part], params[part], **options), whole, strict=True):
            assert torch.equal(got, want[part])


@pytest.mark.parametrize("log_scale", [-100.0, -6.9, 40.0, 80.0, 95.0])
@pytest.mark.parametrize("mean", [0.3, -1000.0])
@pytest.mark.parametrize("sigma", [1e-6, 0.3, 1e6])
def test_extremes_of_a_gaussian(sigma: float, mean: float, log_scale: float) -> None:
    """Also where the variance, and with it eager PyTorch, overflows in float32."""
    params = torch.tensor([0, mean, log_scale]).view(1, 3, 1, 1).expand(1, 3, 1, 256)
    x = LEVELS.float().view(1, 1, 1, 256)
    got = run(x, params, "gaussian", smoothing_scale=sigma)
    want = value_and_gradients(
        lambda x, p: logistic_mixture_log_prob_ref(x, p, "gaussian", smoothing_scale=sigma),
        x.double(),
        params.double(),
    )
    for g, w in zip(got, want, strict=True):
        # Values and derivatives by the log-scale change their sign: a part of the largest.
        atol = 3e-7 * w.abs().max().item() + 1e-30
        torch.testing.assert_close(g.double(), w, rtol=2e-6, atol=atol)


@pytest.mark.parametrize("log_scale", [-8.0, -1.0, 1.0])
@pytest.mark.parametrize("sigma", [0.3, 2.0])
def test_gaussian_density_integrates_to_one(sigma: float, log_scale: float) -> None:
    parts = torch.tensor([0.4, 0, -0.2, 0.7, log_scale, -2])
    x = torch.linspace(-40, 40, 801)  # at a step below sigma / 2 the sum is the integral
    log_prob = logistic_mixture_log_prob(
        x.view(1, 1, 1, -1),
        parts.view(1, 6, 1, 1).expand(1, 6, 1, 801),
        "gaussian",
        "triton",
        smoothing_scale=sigma,
    )
    assert 0.1 * log_prob.double().exp().sum().item() == pytest.approx(1, abs=2e-6)


@pytest.mark.parametrize("n_atoms", [1, 5, 33, 256])
@pytest.mark.parametrize("log_scale", [-8.0, 0.0])
def test_masses_with_atoms_sum_to_one(log_scale: float, n_atoms: int) -> None:
    atoms = ATOMS[n_atoms]
    logits = torch.linspace(-1, 1, n_atoms)
    parts = torch.cat([torch.tensor([0.4, 0]), logits, torch.tensor([-0.2, 0.7, log_scale, -2])])
    params = parts.view(1, -1, 1, 1).expand(1, -1, 1, 256)
    log_prob = logistic_mixture_log_prob(
        LEVELS.float().view(1, 1, 1, 256), params, "discretized", "triton", atoms=atoms
    )
    assert log_prob.double().exp().sum().item() == pytest.approx(1, abs=2e-6)


def test_an_atom_far_above_the_components_neither_overflows_nor_vanishes() -> None:
    x, params = (t.float() for t in random_case(3, "discretized", size=(1, 1, 2)))
    x[..., 0], x[..., 1] = 1.0, 0.5
    params = torch.cat([params[:, :4], torch.full((1, 2, 1, 2), 1e4), params[:, 4:]], dim=1)
    got = run(x, params, "discretized", atoms=(0, 255))
    assert got[0][0, 0, 0].item() == pytest.approx(-math.log(2), rel=1e-6)
    assert_as_exact_as_eager(got, x, params, "discretized", atoms=(0, 255))
