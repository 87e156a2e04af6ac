"""Laws of the mixture's likelihood on the CPU: values and gradients, of each kind of component."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from dsmooth.functional import logistic_mixture_log_prob, logistic_mixture_log_prob_ref
from dsmooth.functional.logistic_mixture import Mixture as Channels
from tests.helpers.gated_cases import INTERPRETED, needs_extension
from tests.helpers.mixture_cases import (
    CASES,
    INSTRUCTION_SETS,
    LEVELS,
    MIXTURES,
    Mixture,
    assert_as_exact_as_eager,
    avoid_kink,
    both_impls,
    each_likelihood,
    each_mixture,
    each_run,
    log_prob_of,
    n_atoms,
    n_params,
    options_of,
    random_case,
    raw_parts,
    run_native,
    value_and_gradients,
)

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "logistic_mixture.json").read_text())
KINDS: list[tuple[int, Mixture]] = CASES
DTYPES, SIZES = [torch.float32, torch.float64], [((3, 9, 19), 5)]
if INTERPRETED:
    narrow, wide = ({"likelihood": "gaussian", "smoothing_scale": s} for s in (0.02, 30.0))
    KINDS = [*CASES, (1, narrow), (3, wide)]
    DTYPES = [torch.float32, torch.bfloat16, torch.float16]
    SIZES = [((3, 9, 11), 10), ((2, 5, 7), 5), ((1, 13, 13), 1), ((1, 1, 1), 5), ((2, 1, 3), 17)]
each_instruction_set = pytest.mark.parametrize("instruction_set", INSTRUCTION_SETS)


def golden_inputs(case: dict[str, Any], narrow: bool) -> tuple[Tensor, Tensor]:
    names = ("batch", "image_channels", "height", "width")
    batch, channels, height, width = (case[name] for name in names)
    shape = (batch, n_params(channels, case["n_mix"]), height, width)
    index = torch.arange(math.prod(shape), dtype=torch.float64)
    params = (-2 + 4 * (0.5 + 0.5 * torch.sin(0.7 * index + 0.3))).view(shape)
    if narrow:
        raw_parts(params, channels)[:, :, 1] = -8
    levels = (37 * torch.arange(batch * channels * height * width) + 11) % 256
    levels[0], levels[1] = 0, 255
    return (levels.double() / 127.5 - 1).view(batch, channels, height, width), params


@pytest.mark.quick
@both_impls
@each_likelihood
@pytest.mark.parametrize("name", ["rgb_base", "rgb_narrow", "grey_base", "grey_narrow"])
def test_golden_values(name: str, likelihood: str, impl: Any) -> None:
    case = GOLDEN[name]
    x, params = golden_inputs(case, "narrow" in name)
    log_prob, grad_x, grad_params = value_and_gradients(log_prob_of(likelihood, impl), x, params)
    expected = torch.tensor(case[f"{likelihood}_log_prob"], dtype=torch.float64)
    torch.testing.assert_close(log_prob.flatten(), expected, rtol=2e-12, atol=0)
    total = case[f"{likelihood}_grad_params_abs_sum"]
    assert grad_params.abs().sum().item() == pytest.approx(total, rel=1e-10)
    first = torch.tensor(case[f"{likelihood}_grad_params_first8"], dtype=torch.float64)
    torch.testing.assert_close(grad_params.flatten()[:8], first, rtol=1e-10, atol=1e-12)
    if likelihood == "continuous":
        first_x = torch.tensor(case["continuous_grad_x_first8"], dtype=torch.float64)
        torch.testing.assert_close(grad_x.flatten()[:8], first_x, rtol=1e-9, atol=1e-12)


@both_impls
@each_likelihood
@pytest.mark.parametrize("case", GOLDEN["scalar_one_component"])
def test_golden_single_component(case: dict[str, float], likelihood: str, impl: Any) -> None:
    x = torch.full((1, 1, 1, 1), case["byte"] / 127.5 - 1, dtype=torch.float64)
    params = torch.tensor([0, case["mean"], case["log_scale"]], dtype=torch.float64)
    got = log_prob_of(likelihood, impl)(x, params.view(1, 3, 1, 1)).item()
    assert got == pytest.approx(case[likelihood], rel=1e-12, abs=1e-15)


@both_impls
@pytest.mark.parametrize("mixture", ["gaussian", "discretized", "atoms"])
@pytest.mark.parametrize("shared", [1e8, -1e8, 320.0])
def test_what_all_logits_share_changes_nothing(shared: float, mixture: str, impl: Any) -> None:
    """In float32, where 1e8 + 3 is 1e8."""
    x, params = (t.float() for t in random_case(1, mixture, size=(1, 2, 5)))
    params[:, : 4 + n_atoms(mixture)] = 8 * params[:, : 4 + n_atoms(mixture)].round()
    expected = value_and_gradients(log_prob_of(mixture, impl), x, params)
    params[:, : 4 + n_atoms(mixture)] += shared
    got = value_and_gradients(log_prob_of(mixture, impl), x, params)
    for g, w in zip(got, expected, strict=True):
        torch.testing.assert_close(g, w, rtol=1e-5, atol=1e-6 * w.abs().max().item())


@both_impls
def test_atoms_are_mixed_with_what_there_is_without_them(impl: Any) -> None:
    """p(x) = (1 - A) p_without(x) + a_j for the byte v_j nearest to x, A = sum_j a_j."""
    n_mix, generator = 3, torch.Generator().manual_seed(4)
    params = torch.randn(1, 3 * n_mix + 256, 1, 512, generator=generator, dtype=torch.float64)
    x = LEVELS.repeat(2).view(1, 1, 1, 512)
    x[..., 256:] += 0.4 / 127.5
    without = torch.cat([params[:, :n_mix], params[:, n_mix + 256 :]], dim=1)
    weights = params[:, : n_mix + 256].softmax(1)
    expected = logistic_mixture_log_prob(x, without, "discretized", impl).exp()
    expected = expected * weights[:, :n_mix].sum(1)
    byte = torch.arange(256).repeat(2).view(1, 1, 1, 512)
    expected = expected + weights[:, n_mix:].gather(1, byte).squeeze(1)
    got = logistic_mixture_log_prob(x, params, "discretized", impl, atoms="all").exp()
    torch.testing.assert_close(got, expected, rtol=1e-12, atol=0)


def test_a_gaussian_component_is_a_normal_that_contains_the_noise() -> None:
    """The means of colours are those of the golden values."""
    x, params = random_case(1, "gaussian", n_mix=1, size=(2, 3, 4))
    raw_parts(params, 1)[:, :, 1].clamp_(-6, 2)
    raw_parts(params, 1)[:, :, 1, ..., -1] += 41  # about where the reference splits a scale
    got = logistic_mixture_log_prob_ref(x, params, "gaussian", smoothing_scale=0.5)
    normal = torch.distributions.Normal(params[:, 1], (params[:, 2].exp() ** 2 + 0.25).sqrt())
    torch.testing.assert_close(got, normal.log_prob(x[:, 0]), rtol=1e-12, atol=1e-12)


def red_green_log_prob(x: Tensor, params: Tensor, **options: Any) -> Tensor:
    """log p(red, green), from grey mixtures of one component each."""
    mixture = Channels.of(params, 3)
    total = torch.log_softmax(mixture.logits, 1)
    red, green = x[:, 0:1], x[:, 1:2]
    means = [mixture.means[:, 0], mixture.means[:, 1] + mixture.coefficients[:, 0] * red]
    for colour, mean, log_scale in zip(
        (red, green), means, mixture.log_scales.unbind(1)[:2], strict=True
    ):
        grey = torch.stack([torch.zeros_like(mean), mean, log_scale], dim=1)  # (B, 3, K, H, W)
        masses = [logistic_mixture_log_prob_ref(colour, p, **options) for p in grey.unbind(2)]
        total = total + torch.stack(masses, dim=1)
    return total.logsumexp(1)


@pytest.mark.quick
@both_impls
@each_mixture
def test_probabilities_sum_to_one(channels: int, mixture: str, impl: Any) -> None:
    """Over x for grey; over blue, to the probability of red and green, for RGB."""
    x, params = random_case(channels, mixture, size=(1, 1, 5), seed=1)
    grid = LEVELS
    if MIXTURES[mixture]["likelihood"] != "discretized":
        raw_parts(params, channels)[:, :, 1].clamp_(-3, 0)
        grid = torch.linspace(-60, 60, 12_001, dtype=torch.float64)  # scales from e^-3 to 1
    wide = x.repeat_interleave(len(grid), dim=3)
    wide[:, -1] = grid.repeat(5)
    log_prob = log_prob_of(mixture, impl)(wide, params.repeat_interleave(len(grid), dim=3))
    p = log_prob.view(5, -1).exp()
    total = p.sum(1) if grid is LEVELS else torch.trapezoid(p, grid, dim=1)
    expected = torch.ones(5, dtype=torch.float64)
    if channels == 3:
        expected = red_green_log_prob(x, params, **MIXTURES[mixture]).flatten().exp()
    torch.testing.assert_close(total, expected, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("mixture", [m for m in MIXTURES if m != "atoms"])
def test_reference_is_twice_differentiable(mixture: str) -> None:
    x, params = random_case(3, mixture, n_mix=2, size=(1, 1, 2))
    raw_parts(params, 3)[:, :, 1].clamp_(-2, 2)
    x, params = x.requires_grad_(), params.requires_grad_()
    assert torch.autograd.gradgradcheck(log_prob_of(mixture, "reference"), (x, params))


@pytest.mark.grid
@each_run
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("last", [False, True], ids=["contiguous", "channels_last"])
@pytest.mark.parametrize(("channels", "mixture"), KINDS, ids=str)
@pytest.mark.parametrize(("size", "n_mix"), SIZES, ids=str)
def test_as_exact_as_eager(size, n_mix, channels, mixture, last, dtype, run) -> None:
    """Beside atoms scales are moderate: at narrow ones the rounding of a mean hides all else."""
    case = random_case(channels, mixture, n_mix=n_mix, size=size)
    x, params = (t.float().to(dtype) for t in case)
    avoid_kink(params, channels, n_atoms(mixture))
    if n_atoms(mixture):
        raw_parts(params, channels, n_atoms(mixture))[:, :, 1].clamp_(-1, 1)
    if last:
        params = params.to(memory_format=torch.channels_last)
    got = run(x, params, mixture)
    assert_as_exact_as_eager(got, x, params, **options_of(mixture))


@each_run
@pytest.mark.parametrize("log_scale", [-100.0, -6.9, 40.0, 80.0, 95.0, 110.0])
@pytest.mark.parametrize("mean", [0.3, -1000.0])
@pytest.mark.parametrize(
    "mixture",
    [
        *("continuous", "discretized"),
        *({"likelihood": "gaussian", "smoothing_scale": sigma} for sigma in (1e-6, 0.3, 1e6)),
    ],
    ids=str,
)
def test_extremes(mixture: Mixture, mean: float, log_scale: float, run: Any) -> None:
    """Every level, from near and from 10^6 scales away, at the narrowest and widest scales."""
    params = torch.tensor([0, mean, log_scale]).view(1, 3, 1, 1).expand(1, 3, 1, 256)
    x = LEVELS.float().view(1, 1, 1, 256)
    got = run(x, params, mixture)
    exact = log_prob_of(mixture, "reference")
    want = value_and_gradients(exact, x.double(), params.double())
    for g, w in zip(got, want, strict=True):
        # Values and derivatives by the log-scale change their sign: a part of the largest.
        atol = 3e-7 * w.abs().max().item() + 1e-30
        torch.testing.assert_close(g.double(), w, rtol=2e-6, atol=atol)
    if isinstance(mixture, str):
        assert_as_exact_as_eager(got, x, params, mixture)
    if log_scale < -7:
        assert (got[2][:, 2] == 0).all()  # clamped: no gradient


@pytest.mark.grid
@needs_extension
@each_instruction_set
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("sign", [-1, 1])
@each_mixture
def test_an_infinite_pixel_is_impossible(mixture, sign, dtype, channels, instruction_set) -> None:
    """Its log-likelihood is -inf and its gradient NaN, as the reference's; no other pixel's is."""
    x, params = (t.to(dtype) for t in random_case(channels, mixture, size=(1, 1, 21)))
    raw_parts(params, channels, n_atoms(mixture))[:, :, 1].clamp_(max=2)
    clean = run_native(x, params, mixture, instruction_set=instruction_set)
    x[:, -1, :, ::5] = sign * math.inf
    got = run_native(x, params, mixture, instruction_set=instruction_set)
    want = value_and_gradients(log_prob_of(mixture, "reference"), x, params)
    assert (got[0][..., ::5] == -math.inf).all()
    assert (want[0][..., ::5] == -math.inf).all()
    assert got[2][:, :, :, ::5].isnan().any(1).all()
    kept = torch.ones(21, dtype=torch.bool)
    kept[::5] = False
    for g, c in zip(got, clean, strict=True):
        assert torch.equal(g[..., kept], c[..., kept])


@pytest.mark.grid
@needs_extension
@each_instruction_set
@each_mixture
def test_a_logit_of_minus_infinity_removes_its_component(
    mixture, channels, instruction_set
) -> None:
    """The first component and the first atom, whatever the pixel."""
    x, params = random_case(channels, mixture, n_mix=4)
    params[:, [0, 4] if n_atoms(mixture) else [0]] = -math.inf
    got = run_native(x, params, mixture, instruction_set=instruction_set)
    want = value_and_gradients(log_prob_of(mixture, "reference"), x, params)
    for g, w in zip(got, want, strict=True):
        torch.testing.assert_close(g, w, rtol=1e-11, atol=1e-13 * (w.abs().max().item() + 1))
