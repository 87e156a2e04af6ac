"""Laws of atoms, of the Gaussian likelihood and of impossible pixels, for each implementation on
the CPU; test_logistic_mixture.py has those that they share with the logistics."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import dsmooth
from dsmooth.functional import logistic_mixture_log_prob, logistic_mixture_log_prob_ref, use_impl
from tests.helpers.mixture_cases import (
    LEVELS,
    MIXTURES,
    n_atoms,
    n_params,
    random_case,
    raw_parts,
    value_and_gradients,
)
from tests.helpers.native_mixture import (
    INSTRUCTION_SETS,
    both_impls,
    each_channels,
    each_mixture,
    log_prob_of,
    needs_extension,
    run_native,
)

each_instruction_set = pytest.mark.parametrize("instruction_set", INSTRUCTION_SETS)


@both_impls
@given(
    atoms=st.lists(st.integers(0, 255), unique=True) | st.just(list(range(256))),
    seed=st.integers(0, 2**32),
)
@settings(max_examples=50, deadline=None)
def test_masses_sum_to_one(impl: Any, atoms: list[int], seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    params = 3 * torch.randn(1, 9 + len(atoms), 1, 1, generator=generator, dtype=torch.float64)
    log_prob = logistic_mixture_log_prob(
        LEVELS.view(1, 1, 1, 256), params.expand(-1, -1, 1, 256), "discretized", impl, atoms=atoms
    )
    assert log_prob.exp().sum().item() == pytest.approx(1, abs=1e-12)


@both_impls
@each_channels
@pytest.mark.parametrize("atoms", [(), (9,), (0, 255, 17), tuple(range(256))], ids=len)
def test_atoms_are_mixed_with_what_there_is_without_them(
    atoms: tuple[int, ...], channels: int, impl: Any
) -> None:
    """p(x) = (1 - A) p_without(x) + sum_j a_j [x = v_j], A = sum_j a_j: at every level of all
    colours, and at pixels that have an atom's level in all colours but one."""
    n_mix, size = 3, 512
    generator = torch.Generator().manual_seed(4)
    shape = 1, n_params(channels, n_mix) + len(atoms), 1, size
    params = torch.randn(shape, generator=generator, dtype=torch.float64)
    levels = torch.arange(256).repeat(2)
    bytes_ = levels.expand(1, channels, 1, size).clone()
    bytes_[:, -1, :, 256:] = (levels[256:] + 1) % 256
    x = bytes_.double() / 127.5 - 1
    without = torch.cat([params[:, :n_mix], params[:, n_mix + len(atoms) :]], dim=1)
    weights = params[:, : n_mix + len(atoms)].softmax(1)
    expected = logistic_mixture_log_prob(x, without, "discretized", impl).exp()
    expected = expected * weights[:, :n_mix].sum(1)
    for j, level in enumerate(atoms):
        expected = expected + weights[:, n_mix + j] * (bytes_ == level).all(1)
    got = logistic_mixture_log_prob(x, params, "discretized", impl, atoms=atoms).exp()
    torch.testing.assert_close(got, expected, rtol=1e-12, atol=0)


@both_impls
@each_channels
def test_a_gaussian_has_one_variance(channels: int, impl: Any) -> None:
    """Its scale and the smoothing's enter by the sum of their squares alone."""
    x, params = random_case(channels, "gaussian", n_mix=3)
    raw_parts(params, channels)[:, :, 1].clamp_(-2, 2)
    moved = params.clone()
    log_scales = raw_parts(moved, channels)[:, :, 1]
    log_scales.copy_((torch.exp(2 * log_scales) + 0.3**2 - 0.1**2).log() / 2)
    got, want = (
        logistic_mixture_log_prob(x, p, "gaussian", impl, smoothing_scale=scale)
        for p, scale in ((params, 0.3), (moved, 0.1))
    )
    torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-12)


@both_impls
@each_channels
def test_a_gaussian_density_integrates_to_one(channels: int, impl: Any) -> None:
    """Over x for grey; over blue, to the same for any smoothing of blue alone, for RGB."""
    x, params = random_case(channels, "gaussian", size=(1, 1, 5), seed=1)
    raw_parts(params, channels)[:, :, 1].clamp_(-3, 0)
    wider = params.clone()
    raw_parts(wider, channels)[:, -1, 1] += 0.5
    grid = torch.linspace(-40, 40, 40_001, dtype=torch.float64)
    x = x.repeat_interleave(len(grid), dim=3)
    x[:, -1] = grid.repeat(5)
    integrals = []
    for p in (params, wider):
        log_prob = logistic_mixture_log_prob(
            x, p.repeat_interleave(len(grid), dim=3), "gaussian", impl, smoothing_scale=0.2
        )
        integrals.append(torch.trapezoid(log_prob.view(5, -1).exp(), grid, dim=1))
    expected = integrals[1] if channels == 3 else torch.ones(5, dtype=torch.float64)
    torch.testing.assert_close(integrals[0], expected, rtol=1e-11, atol=1e-12)


@needs_extension
@each_channels
@given(log_sigma=st.floats(-50, 10), seed=st.integers(0, 2**32))
@settings(max_examples=30, deadline=None)
def test_any_smoothing_scale(channels: int, log_sigma: float, seed: int) -> None:
    """Log-scales reach from -12, clamped, to 6."""
    x, params = random_case(channels, "gaussian", size=(1, 3, 9), seed=seed)
    options: dict[str, Any] = {"smoothing_scale": math.exp(log_sigma)}
    results = [
        value_and_gradients(
            lambda x, p, impl=impl: logistic_mixture_log_prob(x, p, "gaussian", impl, **options),
            x,
            params,
        )
        for impl in ("native", "reference")
    ]
    for got, want in zip(*results, strict=True):
        scale = want.abs().max().item() + 1
        torch.testing.assert_close(got, want, rtol=1e-11, atol=1e-13 * scale)


@needs_extension
@each_channels
@pytest.mark.parametrize("log_scale", [-100.0, -7.0, 20.0, 40.0, 80.0, 95.0])
def test_extreme_scales_of_gaussians_are_finite(log_scale: float, channels: int) -> None:
    """In float32 the square of e^80 is not a number there is."""
    params = torch.zeros(1, n_params(channels, 2), 1, 256)
    raw_parts(params, channels)[:, :, 1] = log_scale
    x = LEVELS.float().expand(1, channels, 1, 256)
    for out in value_and_gradients(log_prob_of("gaussian", "native"), x, params):
        assert out.isfinite().all()


@needs_extension
@each_instruction_set
@each_channels
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("sign", [-1, 1])
@each_mixture
def test_an_infinite_pixel_is_impossible(
    mixture: str, sign: int, dtype: torch.dtype, channels: int, instruction_set: str
) -> None:
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


@needs_extension
@each_instruction_set
@each_channels
@each_mixture
def test_a_logit_of_minus_infinity_is_no_component(
    mixture: str, channels: int, instruction_set: str
) -> None:
    """The first component and the first atom, whatever the pixel."""
    n_mix, atoms = 4, n_atoms(mixture)
    x, params = random_case(channels, mixture, n_mix=n_mix)
    params[:, 0] = -math.inf
    if atoms:
        params[:, n_mix] = -math.inf
    got = run_native(x, params, mixture, instruction_set=instruction_set)
    want = value_and_gradients(log_prob_of(mixture, "reference"), x, params)
    for g, w in zip(got, want, strict=True):
        torch.testing.assert_close(g, w, rtol=1e-11, atol=1e-13 * (w.abs().max().item() + 1))


@needs_extension
@each_instruction_set
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("last", [False, True], ids=["contiguous", "channels_last"])
@each_channels
@pytest.mark.parametrize("n", [1, 37, 256])
def test_any_number_of_atoms_is_as_exact_as_eager(
    n: int, channels: int, last: bool, dtype: torch.dtype, instruction_set: str
) -> None:
    """At moderate scales: at narrow ones, which the test of the discretized likelihood meets, the
    rounding of a mean hides all else."""
    generator = torch.Generator().manual_seed(n)
    atoms = torch.randperm(256, generator=generator)[:n].tolist()
    mixture = {"likelihood": "discretized", "atoms": atoms}
    size = 3, 9, 19
    params = torch.randn(size[0], n_params(channels, 5) + n, *size[1:], generator=generator)
    raw_parts(params, channels, n)[:, :, 1].clamp_(-1, 1)
    x = torch.tensor(atoms)[torch.randint(n, (size[0], 1, *size[1:]), generator=generator)]
    x = x.repeat(1, channels, 1, 1).float()
    x[:, -1, :, ::2] = 77
    x = x / 127.5 - 1

    def reference(x: Tensor, params: Tensor) -> Tensor:
        return logistic_mixture_log_prob_ref(x, params, "discretized", atoms=atoms)

    exact = value_and_gradients(reference, x.double(), params.double())
    eager = value_and_gradients(reference, x, params)
    if last:
        params = params.to(memory_format=torch.channels_last)
    got = run_native(x.to(dtype), params.to(dtype), mixture, instruction_set=instruction_set)
    for g, plain, want in zip(got, eager, exact, strict=True):
        error = (plain.double() - want).abs().max().item()
        if dtype == torch.float64:
            error *= 2 * torch.finfo(dtype).eps / torch.finfo(torch.float32).eps
        rounding = torch.finfo(dtype).eps * want.abs().max().item()
        assert (g.double() - want).abs().max().item() <= 2 * error + rounding


@needs_extension
@pytest.mark.parametrize("mixture", ["atoms", "gaussian"])
def test_a_whole_network_learns_the_same(mixture: str) -> None:
    config = dsmooth.ModelConfig(n_filters=8, n_resnet=1, n_mix=3, dropout=0.0, **MIXTURES[mixture])
    torch.manual_seed(0)
    model = dsmooth.PixelCNNpp(config).double()
    x, _ = random_case(1, mixture, size=(2, 12, 8))

    def run(impl: Any) -> tuple[Tensor, ...]:
        with use_impl("reference"):
            params = model(x)
        log_prob = logistic_mixture_log_prob(x, params, impl=impl, **config.mixture).sum((1, 2))
        return log_prob, *torch.autograd.grad(log_prob.sum(), tuple(model.parameters()))

    with use_impl("reference"):
        assert torch.equal(run("reference")[0], model.log_prob(x))
    for got, want in zip(run("native"), run("reference"), strict=True):
        scale = want.abs().max().item() + 1
        torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-12 * scale)


@needs_extension
@pytest.mark.parametrize("mixture", ["atoms", "gaussian"])
def test_auto_takes_the_native_operator(mixture: str) -> None:
    x, params = random_case(1, mixture)
    params.requires_grad_()
    log_prob = log_prob_of(mixture, "auto")(x, params)
    assert torch.equal(log_prob, log_prob_of(mixture, "native")(x, params))
    assert "logistic_mixture" in str(log_prob.grad_fn)
