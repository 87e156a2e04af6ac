"""Laws of the logistic mixture: values and gradients."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from dsmooth.functional import (
    logistic_mixture_log_prob,
    logistic_mixture_log_prob_ref,
)
from dsmooth.functional.logistic_mixture import split_mixture
from tests.helpers.mixture_cases import (
    GOLDEN,
    GOLDEN_CASES,
    LEVELS,
    LIKELIHOODS,
    golden_inputs,
    n_atoms,
    random_case,
    raw_parts,
    value_and_gradients,
)
from tests.helpers.native_mixture import (
    INSTRUCTION_SETS,
    both_impls,
    each_channels,
    each_likelihood,
    each_mixture,
    log_prob_of,
    needs_extension,
    run_native,
)


@pytest.mark.quick
@both_impls
@each_likelihood
@pytest.mark.parametrize("name", GOLDEN_CASES)
def test_golden_values(name: str, likelihood: str, impl: Any) -> None:
    case = GOLDEN[name]
    x, params = golden_inputs(case, "narrow" in name)
    log_prob, grad_x, grad_params = value_and_gradients(
        lambda x, p: logistic_mixture_log_prob(x, p, likelihood, impl=impl), x, params
    )
    expected = torch.tensor(case[f"{likelihood}_log_prob"], dtype=torch.float64)
    torch.testing.assert_close(log_prob.flatten(), expected, rtol=2e-12, atol=0)
    assert grad_params.abs().sum().item() == pytest.approx(
        case[f"{likelihood}_grad_params_abs_sum"], rel=1e-10
    )
    first = torch.tensor(case[f"{likelihood}_grad_params_first8"], dtype=torch.float64)
    torch.testing.assert_close(grad_params.flatten()[:8], first, rtol=1e-10, atol=1e-12)
    if likelihood == "continuous":
        first_x = torch.tensor(case["continuous_grad_x_first8"], dtype=torch.float64)
        torch.testing.assert_close(grad_x.flatten()[:8], first_x, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", GOLDEN_CASES)
def test_golden_legacy(name: str) -> None:
    x, params = golden_inputs(GOLDEN[name], "narrow" in name)
    total = logistic_mixture_log_prob_ref(x, params, "discretized_legacy").sum().item()
    assert total == pytest.approx(GOLDEN[name]["discretized_legacy_sum"], rel=1e-12)


@pytest.mark.parametrize("likelihood", [*LIKELIHOODS, "discretized_legacy"])
@pytest.mark.parametrize("case", GOLDEN["scalar_one_component"])
def test_golden_single_component(case: dict[str, float], likelihood: Any) -> None:
    x = torch.full((1, 1, 1, 1), case["byte"] / 127.5 - 1, dtype=torch.float64)
    params = torch.tensor([0, case["mean"], case["log_scale"]], dtype=torch.float64)
    got = logistic_mixture_log_prob_ref(x, params.view(1, 3, 1, 1), likelihood).item()
    assert got == pytest.approx(case[likelihood], rel=1e-12)
    if likelihood != "discretized_legacy" and INSTRUCTION_SETS:
        native = run_native(x, params.view(1, 3, 1, 1), likelihood)[0].item()
        assert native == pytest.approx(case[likelihood], rel=1e-12, abs=1e-15)


def test_legacy_midpoint_is_off_where_scales_are_narrow() -> None:
    """The known fault that `discretized` does not have: 2.15 nats at a log-scale of -7."""
    params = torch.tensor([0, -0.4, -7.0], dtype=torch.float64).view(1, 3, 1, 1)
    x = torch.full((1, 1, 1, 1), 66 / 127.5 - 1, dtype=torch.float64)
    exact = logistic_mixture_log_prob_ref(x, params, "discretized")
    legacy = logistic_mixture_log_prob_ref(x, params, "discretized_legacy")
    assert (exact - legacy).item() == pytest.approx(2.15, abs=0.01)


@pytest.mark.quick
@both_impls
@given(
    mean=st.floats(-3, 3),
    log_scale=st.floats(-9, 5),
    other_mean=st.floats(-1, 1),
    logit=st.floats(-5, 5),
)
@settings(max_examples=50, deadline=None)
def test_masses_sum_to_one(
    impl: Any, mean: float, log_scale: float, other_mean: float, logit: float
) -> None:
    parts = torch.tensor([logit, 0, mean, other_mean, log_scale, -2], dtype=torch.float64)
    params = parts.view(1, 6, 1, 1).expand(1, 6, 1, 256)
    log_prob = logistic_mixture_log_prob(LEVELS.view(1, 1, 1, 256), params, "discretized", impl)
    assert log_prob.exp().sum().item() == pytest.approx(1, abs=1e-12)


@both_impls
def test_masses_of_blue_sum_to_the_mass_of_red_and_green(impl: Any) -> None:
    x, params = random_case(3, "discretized", size=(1, 1, 6))
    x = x.repeat_interleave(256, dim=3)
    x[:, 2] = LEVELS.repeat(6)
    log_prob = logistic_mixture_log_prob(
        x, params.repeat_interleave(256, dim=3), "discretized", impl
    )
    marginal = log_prob.view(6, 256).logsumexp(1)
    expected = red_green_log_prob(x[..., ::256], params, "discretized").flatten()
    torch.testing.assert_close(marginal, expected, rtol=1e-12, atol=1e-12)


def red_green_log_prob(x: Tensor, params: Tensor, likelihood: Any) -> Tensor:
    """log p(red, green): with a blue component so wide that each blue level weighs the same."""
    mixture = split_mixture(params, 3)
    total = torch.log_softmax(mixture.logits, 1)
    red, green = x[:, 0:1], x[:, 1:2]
    means = [mixture.means[:, 0], mixture.means[:, 1] + mixture.coefficients[:, 0] * red]
    for colour, mean, log_scale in zip(
        (red, green), means, mixture.log_scales.unbind(1)[:2], strict=True
    ):
        total = total + torch.cat(
            [
                logistic_mixture_log_prob_ref(
                    colour,
                    torch.cat(
                        [
                            torch.zeros_like(mean[:, k : k + 1]),
                            mean[:, k : k + 1],
                            log_scale[:, k : k + 1],
                        ],
                        dim=1,
                    ),
                    likelihood,
                )[:, None]
                for k in range(mean.shape[1])
            ],
            dim=1,
        )
    return total.logsumexp(1)


@both_impls
@each_channels
def test_density_integrates_to_one(channels: int, impl: Any) -> None:
    """Over x for grey; over blue, to the density of red and green, for RGB.

    The trapezoid rule converges exponentially for this smooth integrand.
    """
    x, params = random_case(channels, "continuous", size=(1, 1, 5), seed=1)
    raw_parts(params, channels)[:, :, 1].clamp_(-3, 0)
    grid = torch.linspace(-60, 60, 120_001, dtype=torch.float64)  # scales from e^-3 to 1
    wide = x.repeat_interleave(len(grid), dim=3)
    wide[:, -1] = grid.repeat(5)
    log_prob = logistic_mixture_log_prob(
        wide, params.repeat_interleave(len(grid), dim=3), "continuous", impl
    )
    integral = torch.trapezoid(log_prob.view(5, -1).exp(), grid, dim=1)
    expected = torch.ones(5, dtype=torch.float64)
    if channels == 3:
        expected = red_green_log_prob(x, params, "continuous").flatten().exp()
    torch.testing.assert_close(integral, expected, rtol=1e-11, atol=1e-12)


@pytest.mark.quick
@both_impls
@each_mixture
@each_channels
def test_gradcheck(channels: int, mixture: str, impl: Any) -> None:
    x, params = random_case(channels, mixture, n_mix=2, size=(1, 2, 2))
    log_scales = raw_parts(params, channels, n_atoms(mixture))[:, :, 1]
    log_scales.clamp_(-2, 2)  # finite differences need moderate scales
    x, params = x.requires_grad_(), params.requires_grad_()
    assert torch.autograd.gradcheck(log_prob_of(mixture, impl), (x, params))


@each_mixture
def test_reference_is_twice_differentiable(mixture: str) -> None:
    x, params = random_case(3, mixture, n_mix=2, size=(1, 1, 2))
    raw_parts(params, 3, n_atoms(mixture))[:, :, 1].clamp_(-2, 2)
    x, params = x.requires_grad_(), params.requires_grad_()
    assert torch.autograd.gradgradcheck(log_prob_of(mixture, "reference"), (x, params))


@pytest.mark.quick
@needs_extension
@each_mixture
@each_channels
@given(seed=st.integers(0, 2**32), n_mix=st.integers(1, 12), width=st.integers(1, 40))
@settings(max_examples=20, deadline=None)
def test_closed_form_equals_autograd(
    channels: int, mixture: str, seed: int, n_mix: int, width: int
) -> None:
    x, params = random_case(channels, mixture, n_mix=n_mix, size=(1, 2, width), seed=seed)
    expected = value_and_gradients(log_prob_of(mixture, "reference"), x, params)
    for got, want in zip(run_native(x, params, mixture), expected, strict=True):
        scale = want.abs().max().item() + 1
        torch.testing.assert_close(got, want, rtol=1e-11, atol=1e-13 * scale)


@pytest.mark.quick
@needs_extension
@pytest.mark.parametrize("instruction_set", INSTRUCTION_SETS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("mixture", ["continuous", "discretized", "gaussian"])
@each_channels
def test_each_instruction_set_is_as_exact_as_eager(
    channels: int, mixture: str, dtype: torch.dtype, instruction_set: str
) -> None:
    """At most twice eager's error, and one rounding; with atoms, in test_atoms_and_gaussians.py.

    In float32 both errors are measured against float64. Nothing here is wider than float64: there
    eager's error is taken as its float32 error scaled by the epsilons, once for each side.
    """
    reference = log_prob_of(mixture, "reference")
    x, params = (t.float() for t in random_case(channels, mixture, n_mix=10, size=(3, 9, 11)))
    exact = value_and_gradients(reference, x.double(), params.double())
    eager = value_and_gradients(reference, x, params)
    native = run_native(x.to(dtype), params.to(dtype), mixture, instruction_set=instruction_set)
    for got, plain, want in zip(native, eager, exact, strict=True):
        assert got.dtype == dtype
        eager_error = (plain.double() - want).abs().max().item()
        if dtype == torch.float64:
            eager_error *= 2 * torch.finfo(dtype).eps / torch.finfo(torch.float32).eps
        rounding = torch.finfo(dtype).eps * want.abs().max().item()
        assert (got.double() - want).abs().max().item() <= 2 * eager_error + rounding


@both_impls
@each_mixture
def test_a_clamped_log_scale_has_no_gradient(mixture: str, impl: Any) -> None:
    x, params = random_case(3, mixture)
    grad = value_and_gradients(log_prob_of(mixture, impl), x, params)[2]
    clamped = raw_parts(params, 3, n_atoms(mixture))[:, :, 1] < -7
    grad_log_scales = raw_parts(grad, 3, n_atoms(mixture))[:, :, 1]
    assert clamped.any()
    assert (grad_log_scales[clamped] == 0).all()
    assert (grad_log_scales[~clamped] != 0).any()


@both_impls
@pytest.mark.parametrize("log_scale", [-100.0, -7.0, 40.0, 80.0, 95.0])
def test_extreme_scales_are_finite(log_scale: float, impl: Any) -> None:
    """Float32, where 1 - e^-D underflows at wide scales and a dropped branch could be infinite."""
    params = torch.tensor([0, 0.3, log_scale]).view(1, 3, 1, 1).expand(1, 3, 1, 256)
    x = LEVELS.float().view(1, 1, 1, 256)
    for out in value_and_gradients(
        lambda x, p: logistic_mixture_log_prob(x, p, "discretized", impl), x, params
    ):
        assert out.isfinite().all()
