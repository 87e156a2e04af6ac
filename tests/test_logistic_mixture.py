"""Laws of the logistic mixture: values, gradients, draws, and what the native operator promises.

One file though long, because its four parts judge the same random cases with the same helpers.
"""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from dsmooth import _extension
from dsmooth.functional import (
    logistic_mixture_log_prob,
    logistic_mixture_log_prob_ref,
    logistic_mixture_sample,
    use_impl,
)
from dsmooth.functional.logistic_mixture import snap_to_levels, split_mixture
from dsmooth.functional.logistic_mixture_native import native, native_backward
from tests.mixture_cases import (
    GOLDEN,
    GOLDEN_CASES,
    LEVELS,
    LIKELIHOODS,
    MIXTURES,
    golden_inputs,
    n_atoms,
    n_params,
    random_case,
    raw_parts,
    value_and_gradients,
)
from tests.native_mixture import (
    INSTRUCTION_SETS,
    both_impls,
    call_native,
    each_channels,
    each_mixture,
    log_prob_of,
    native_mixture,
    native_outputs,
    needs_extension,
    run_native,
)

each_likelihood = pytest.mark.parametrize("likelihood", LIKELIHOODS)


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


@needs_extension
@pytest.mark.parametrize("instruction_set", INSTRUCTION_SETS)
@each_mixture
@each_channels
def test_nan_is_never_hidden(channels: int, mixture: str, instruction_set: str) -> None:
    """A NaN in any one channel of x or params makes its pixel NaN, and no other."""
    n_mix = 2
    total = n_params(channels, n_mix) + n_atoms(mixture) + channels
    x, params = random_case(channels, mixture, n_mix=n_mix, size=(1, 1, total + 1))
    clean = run_native(x, params, mixture, instruction_set=instruction_set)
    for pixel in range(params.shape[1]):
        params[:, pixel, :, pixel] = math.nan
    for c in range(channels):
        x[:, c, :, params.shape[1] + c] = math.nan
    got = run_native(x, params, mixture, instruction_set=instruction_set)
    assert got[0][..., :-1].isnan().all()
    assert got[2][..., :-1].isnan().any(dim=1).all()
    for dirty, pure in zip(got, clean, strict=True):
        assert torch.equal(dirty[..., -1], pure[..., -1])


@both_impls
def test_nan_reaches_the_result(impl: Any) -> None:
    x, params = random_case(3, "continuous")
    x[0, 1, 2, 3] = math.nan
    log_prob = logistic_mixture_log_prob(x, params, impl=impl)
    assert log_prob[0, 2, 3].isnan()
    assert log_prob.isnan().sum() == 1


@needs_extension
@pytest.mark.parametrize("instruction_set", INSTRUCTION_SETS)
@each_mixture
@each_channels
def test_nothing_is_written_outside_the_outputs(
    channels: int, mixture: str, instruction_set: str
) -> None:
    for width in (1, 3, 15, 16, 17, 33):
        x, params = random_case(channels, mixture, size=(2, 3, width))
        canary = 123.456
        plain = native_outputs(x, params)
        buffers = {k: torch.full((v.numel() + 128,), canary).double() for k, v in plain.items()}
        views = {k: b[64:-64].view(plain[k].shape).fill_(math.nan) for k, b in buffers.items()}
        call_native(x, params, mixture, views, instruction_set=instruction_set)
        for buffer, view in zip(buffers.values(), views.values(), strict=True):
            assert (buffer[:64] == torch.tensor(canary).double()).all()
            assert (buffer[-64:] == torch.tensor(canary).double()).all()
            assert view.isfinite().all()


@needs_extension
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@each_mixture
def test_thread_count_changes_no_bit(mixture: str, dtype: torch.dtype) -> None:
    x, params = random_case(3, mixture, size=(3, 7, 13))
    x, params = x.to(dtype), params.to(dtype)
    alone = run_native(x, params, mixture, threads=1)
    for threads in (2, 3, 5, 64):
        shared = run_native(x, params, mixture, threads=threads)
        assert all(torch.equal(a, b) for a, b in zip(alone, shared, strict=True))


@both_impls
@each_mixture
@each_channels
def test_any_strides_give_the_same(channels: int, mixture: str, impl: Any) -> None:
    x, params = random_case(channels, mixture, size=(2, 6, 10))

    log_prob = log_prob_of(mixture, impl)
    expected = value_and_gradients(log_prob, x, params)
    last = torch.channels_last
    layouts = [
        (x.to(memory_format=last), params.to(memory_format=last)),
        (x, params.to(memory_format=last)),
        (x.transpose(2, 3).contiguous().transpose(2, 3), params),
        (x, torch.cat([params, params], dim=3)[..., 10:]),
        (x[:1].expand(2, -1, -1, -1), params),
    ]
    for i, (x_view, params_view) in enumerate(layouts):
        want = expected
        if i == 4:
            want = value_and_gradients(log_prob, x_view.contiguous(), params_view)
        got = value_of_views(log_prob, x_view, params_view)
        for g, w in zip(got, want, strict=True):
            torch.testing.assert_close(g, w, rtol=1e-13, atol=1e-13 * w.abs().max().item())


def value_of_views(
    function: Callable[[Tensor, Tensor], Tensor], x: Tensor, params: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """As value_and_gradients, without a copy that would straighten the strides."""
    x, params = x.detach().requires_grad_(), params.detach().requires_grad_()
    log_prob = function(x, params)
    return (log_prob.detach(), *torch.autograd.grad(log_prob.sum(), (x, params)))


@both_impls
@pytest.mark.parametrize("size", [(0, 4, 4), (2, 0, 4), (1, 1, 1), (1, 3, 1), (2, 1, 29)], ids=str)
@each_mixture
@each_channels
def test_any_size(channels: int, mixture: str, size: tuple[int, int, int], impl: Any) -> None:
    x, params = random_case(channels, mixture, size=size)
    got = value_and_gradients(log_prob_of(mixture, impl), x, params)
    want = value_and_gradients(log_prob_of(mixture, "reference"), x, params)
    assert [g.shape for g in got] == [(size[0], *size[1:]), x.shape, params.shape]
    for g, w in zip(got, want, strict=True):
        torch.testing.assert_close(g, w, rtol=1e-11, atol=1e-10)


@needs_extension
def test_gradient_of_a_weighted_sum() -> None:
    """The operator multiplies its unit gradients by what arrives from above, per pixel."""
    x, params = random_case(3, "continuous")
    weights = torch.randn(2, 5, 7, dtype=torch.float64)
    results = [
        value_and_gradients(
            lambda x, p, impl=impl: logistic_mixture_log_prob(x, p, impl=impl) * weights, x, params
        )
        for impl in ("native", "reference")
    ]
    for g, w in zip(*results, strict=True):
        torch.testing.assert_close(g, w, rtol=1e-10, atol=1e-10)


@needs_extension
@each_mixture
def test_only_the_wanted_gradient_is_computed(mixture: str) -> None:
    x, params = random_case(1, mixture)
    params.requires_grad_()
    log_prob = log_prob_of(mixture, "native")
    (grad,) = torch.autograd.grad(log_prob(x, params).sum(), params)
    want = value_and_gradients(log_prob_of(mixture, "reference"), x, params)[2]
    torch.testing.assert_close(grad, want, rtol=1e-11, atol=1e-10)
    with torch.no_grad():
        assert not log_prob(x, params).requires_grad
    options = native_mixture(mixture).values()
    grad = torch.ones(2, 5, 7, dtype=torch.float64)
    _, state = native(x, params.detach(), *options)
    for needs in ((True, False), (False, True), (False, False)):
        got = native_backward(grad, x, params.detach(), state, *options, *needs)
        for gradient, needed in zip(got, needs, strict=True):
            assert (gradient.numel() > 0) == needed


@needs_extension
def test_a_graph_that_is_kept_gives_its_gradient_again() -> None:
    x, params = random_case(3, "discretized")
    inputs = x.requires_grad_(), params.requires_grad_()
    log_prob = logistic_mixture_log_prob(*inputs, "discretized", impl="native")
    weights = torch.randn(log_prob.shape, dtype=torch.float64)
    first = torch.autograd.grad((log_prob * weights).sum(), inputs, retain_graph=True)
    kept = [gradient.clone() for gradient in first]
    doubled = torch.autograd.grad((log_prob * weights).sum() * 2, inputs)
    for a, b, c in zip(first, kept, doubled, strict=True):
        assert torch.equal(a, b)
        assert torch.equal(2 * a, c)


@needs_extension
# opcheck reads .grad of the clones that it makes; the warning is about its own tensors
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")
@each_mixture
@each_channels
def test_opcheck(channels: int, mixture: str) -> None:
    x, params = random_case(channels, mixture, n_mix=2, size=(2, 3, 5))
    options = native_mixture(mixture).values()
    last = params.to(memory_format=torch.channels_last)
    torch.library.opcheck(native, (x, params, *options))
    torch.library.opcheck(
        native, (x.clone().requires_grad_(), last.clone().requires_grad_(), *options)
    )
    grad = torch.randn(2, 3, 5, dtype=torch.float64)
    _, state = native(x, params, *options)
    for needs in ((True, True), (False, True), (True, False)):
        torch.library.opcheck(native_backward, (grad, x, last, state, *options, *needs))


@needs_extension
def test_second_derivative_is_refused_not_lost() -> None:
    x, params = random_case(1, "continuous")
    params.requires_grad_()
    log_prob = logistic_mixture_log_prob(x, params, impl="native").sum()
    (grad,) = torch.autograd.grad(log_prob, params, create_graph=True)
    with pytest.raises(NotImplementedError, match="use impl='reference'"):
        torch.autograd.grad(grad.square().sum() + params.sum(), params)


@pytest.mark.slow
@both_impls
@each_mixture
def test_compiles_without_a_break(mixture: str, impl: Any) -> None:
    def loss(x: Tensor, params: Tensor) -> Tensor:
        return -logistic_mixture_log_prob(x, params, impl=impl, **MIXTURES[mixture]).mean()

    x, params = random_case(3, mixture)
    compiled = torch.compile(loss, fullgraph=True)
    for got, want in zip(
        value_and_gradients(compiled, x, params), value_and_gradients(loss, x, params), strict=True
    ):
        torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-12)


@both_impls
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_is_computed_in_float32(dtype: torch.dtype, impl: Any) -> None:
    x, params = random_case(3, "continuous")
    x, params = x.to(dtype), params.to(dtype)

    def loss(x: Tensor, params: Tensor) -> Tensor:
        return logistic_mixture_log_prob(x, params, impl=impl)

    wide = value_and_gradients(loss, x.float(), params.float())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        narrow = value_and_gradients(loss, x, params)
        mixed = logistic_mixture_log_prob(x.float(), params, impl=impl)
    assert torch.equal(narrow[0], wide[0])
    assert torch.equal(mixed, wide[0])
    assert [g.dtype for g in narrow] == [torch.float32, dtype, dtype]
    for g, w in zip(narrow[1:], wide[1:], strict=True):
        assert torch.equal(g, w.to(dtype))


def test_use_impl_decides_and_an_explicit_impl_wins(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_extension, "unavailable_reason", lambda: "no compiler here")
    x, params = random_case(1, "continuous")
    reference = logistic_mixture_log_prob(x, params, impl="reference")
    assert torch.equal(logistic_mixture_log_prob(x, params), reference)  # auto falls back
    with pytest.raises(RuntimeError, match="no compiler here"):
        logistic_mixture_log_prob(x, params, impl="native")
    with use_impl("native"):
        with pytest.raises(RuntimeError, match="no compiler here"):
            logistic_mixture_log_prob(x, params)
        assert torch.equal(logistic_mixture_log_prob(x, params, impl="reference"), reference)


def test_triton_says_why_it_cannot_run() -> None:
    """What it computes is judged in interpreted_logistic_mixture.py."""
    x, params = (t.float() for t in random_case(1, "continuous"))
    reason = "runs on cuda tensors, got cpu .*TRITON_INTERPRET=1"
    if importlib.util.find_spec("triton") is None:
        reason = "Triton is not installed"
    with pytest.raises(RuntimeError, match=f"with impl='triton': .*{reason}"):
        logistic_mixture_log_prob(x, params, impl="triton")
    with pytest.raises(RuntimeError, match=r"got torch\.float64"):
        logistic_mixture_log_prob(x, params.double(), impl="triton")
    with pytest.raises(RuntimeError, match="runs on cuda tensors, got meta"):
        logistic_mixture_log_prob(x.to("meta"), params.to("meta"), impl="triton")


@pytest.mark.parametrize("device", ["meta"])
def test_native_says_which_devices_it_runs_on(device: str) -> None:
    x, params = (t.to(device) for t in random_case(1, "continuous"))
    assert logistic_mixture_log_prob(x, params).shape == (2, 5, 7)
    with pytest.raises(RuntimeError, match="runs on cpu and cuda tensors, got meta"):
        logistic_mixture_log_prob(x, params, impl="native")


ZEROS = torch.zeros


@pytest.mark.parametrize(
    ("x", "params", "error", "message"),
    [
        (ZEROS(1, 2, 4, 4), ZEROS(1, 30, 4, 4), ValueError, r"x .* C = 1 or 3, got \(1, 2, 4, 4\)"),
        (ZEROS(4, 4), ZEROS(1, 30, 4, 4), ValueError, r"x must have shape .*got \(4, 4\)"),
        (ZEROS(1, 1, 4, 4), ZEROS(1, 10, 4, 4), ValueError, r"\(B, 3K, H, W\).*\(1, 10, 4, 4\)"),
        (ZEROS(1, 3, 4, 4), ZEROS(1, 15, 4, 4), ValueError, r"\(B, 10K, H, W\).*\(1, 15, 4, 4\)"),
        (ZEROS(1, 1, 4, 4), ZEROS(1, 0, 4, 4), ValueError, r"\(B, 3K, H, W\)"),
        (ZEROS(2, 1, 4, 4), ZEROS(1, 3, 4, 4), ValueError, r"params .*\(2, 3, 4, 4\), got \(1, 3"),
        (ZEROS(1, 1, 4, 4), ZEROS(1, 3, 4, 8), ValueError, r"params .*\(1, 3, 4, 4\), got"),
        (ZEROS(1, 1, 4, 4).int(), ZEROS(1, 3, 4, 4), TypeError, "x must be a floating-point"),
        (ZEROS(1, 1, 4, 4), ZEROS(1, 3, 4, 4).long(), TypeError, "params must be a floating"),
        (ZEROS(1, 1, 4, 4), ZEROS(1, 3, 4, 4, device="meta"), ValueError, "on x's device cpu"),
    ],
)
def test_bad_tensors(x: Tensor, params: Tensor, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        logistic_mixture_log_prob(x, params)
    with pytest.raises(error, match=message):
        logistic_mixture_log_prob_ref(x, params)


def test_bad_likelihood() -> None:
    x, params = random_case(1, "continuous")
    with pytest.raises(ValueError, match="discretized, gaussian, got 'discretised'"):
        logistic_mixture_log_prob(x, params, "discretised")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="discretized_legacy, got 'x'"):
        logistic_mixture_log_prob_ref(x, params, "x")  # type: ignore[arg-type]


N_DRAWS = 20_000


def uniforms_of(n: int, seed: int = 5) -> Tensor:
    """(1, 4, 1, n) uniforms on the sampler's grid: (integer + 1/2) / 2^23."""
    generator = torch.Generator().manual_seed(seed)
    words = torch.randint(0, 2**23, (1, 4, 1, n), generator=generator)
    return (words.double() + 0.5) * 2.0**-23


def conditional_cdf(x: Tensor, params: Tensor, likelihood: str, place: float) -> list[Tensor]:
    """P(X_c < x_c | earlier colours), per colour, as if a level's mass were drawn at `place` in it.

    Independent uniforms over draws of the model (Rosenblatt's transform).
    """
    channels = x.shape[1]
    mixture = split_mixture(params, channels)
    log_weights = torch.log_softmax(mixture.logits, 1)
    transformed = []
    for c in range(channels):
        value = x[:, c : c + 1]
        mean = mixture.means[:, c]
        if c == 1:
            mean = mean + mixture.coefficients[:, 0] * x[:, 0:1]
        if c == 2:
            mean = mean + mixture.coefficients[:, 1] * x[:, 0:1]
            mean = mean + mixture.coefficients[:, 2] * x[:, 1:2]
        log_scale = mixture.log_scales[:, c].clamp(min=-7)
        if likelihood == "continuous":
            cdf = torch.sigmoid((value - mean) * torch.exp(-log_scale))
            z = (value - mean) * torch.exp(-log_scale)
            log_p = torch.nn.functional.logsigmoid(z) + torch.nn.functional.logsigmoid(-z)
            log_p = log_p - log_scale
        else:
            lower = torch.sigmoid((value - 1 / 255 - mean) * torch.exp(-log_scale))
            upper = torch.sigmoid((value + 1 / 255 - mean) * torch.exp(-log_scale))
            lower = torch.where(value < -0.999, torch.zeros_like(lower), lower)
            upper = torch.where(value > 0.999, torch.ones_like(upper), upper)
            cdf = lower + place * (upper - lower)
            log_p = torch.log(upper - lower)
        transformed.append((torch.softmax(log_weights, 1) * cdf).sum(1).flatten())
        log_weights = log_weights + log_p
    return transformed


def ks_distance(values: Tensor) -> float:
    """Largest distance of the empirical distribution of values from the uniform one."""
    ordered = np.sort(values.numpy())
    n = len(ordered)
    steps = np.arange(n + 1) / n
    return float(max((steps[1:] - ordered).max(), (ordered - steps[:-1]).max()))


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


def test_quantiles_of_the_golden_mixture() -> None:
    case = GOLDEN["mixture_quantiles"]
    params = torch.tensor([case["logits"] + case["means"] + case["log_scales"]])
    params = params.double().view(1, 9, 1, 1)
    for u, quantile in case["u_and_quantile"]:
        x = torch.full((1, 1, 1, 1), quantile, dtype=torch.float64)
        assert conditional_cdf(x, params, "continuous", 0.5)[0].item() == pytest.approx(u, rel=1e-6)


def test_a_draw_inverts_its_uniforms() -> None:
    """One component, so the noise is known: the earlier colours moved the means as drawn."""
    _, params = random_case(3, "continuous", n_mix=1, size=(2, 3, 4))
    uniforms = uniforms_of(24).view(4, 2, 3, 4).transpose(0, 1)
    x = logistic_mixture_sample(params, uniforms, 3)
    recovered = conditional_cdf(x, params, "continuous", 0.5)
    for c in range(3):
        torch.testing.assert_close(recovered[c], uniforms[:, c + 1].flatten(), rtol=1e-9, atol=1e-9)


def test_discretized_draws_are_levels_and_condition_as_such() -> None:
    _, params = random_case(3, "discretized", n_mix=1, size=(1, 1, 1))
    parts = raw_parts(params, 3)
    parts[:, :, 0] = 0.1
    parts[:, :, 1] = -12  # clamped at -7: the noise is far below a level
    parts[:, 0, 2], parts[:, 1, 2], parts[:, 2, 2] = 0.9, 0.4, -0.3
    params = params.expand(-1, -1, -1, 500)
    x = logistic_mixture_sample(params, uniforms_of(500), 3, "discretized")
    levels = (x + 1) * 127.5
    torch.testing.assert_close(levels, levels.round(), rtol=0, atol=1e-9)
    coefficients = torch.tanh(torch.tensor([0.9, 0.4, -0.3], dtype=torch.float64))
    scale = math.exp(-7) * torch.logit(uniforms_of(500))
    green = 0.1 + coefficients[0] * x[:, 0] + scale[:, 2]
    blue = 0.1 + coefficients[1] * x[:, 0] + coefficients[2] * x[:, 1] + scale[:, 3]
    torch.testing.assert_close(x[:, 1], snap_to_levels(green), rtol=0, atol=1e-12)
    torch.testing.assert_close(x[:, 2], snap_to_levels(blue), rtol=0, atol=1e-12)


def test_continuous_draws_are_not_clamped() -> None:
    params = torch.tensor([0, 0.9, 0.0]).view(1, 3, 1, 1).expand(1, 3, 1, 1000)
    assert logistic_mixture_sample(params, uniforms_of(1000), 1).max() > 2
    assert logistic_mixture_sample(params, uniforms_of(1000), 1, "discretized").max() == 1


def test_snapping_keeps_the_levels() -> None:
    assert torch.equal(snap_to_levels(LEVELS), LEVELS)
    narrow = torch.arange(256, dtype=torch.float32) / 127.5 - 1
    assert torch.equal(snap_to_levels(narrow), narrow)


@each_channels
def test_temperature_divides_logits_and_widens_scales(channels: int) -> None:
    _, params = random_case(channels, "continuous", size=(2, 4, 4))
    raw_parts(params, channels)[:, :, 1].clamp_(-5, 0)
    uniforms = uniforms_of(32).view(4, 2, 4, 4).transpose(0, 1)
    warm = params.clone()
    warm[:, : params.shape[1] // (3 if channels == 1 else 10)] /= 0.7
    raw_parts(warm, channels)[:, :, 1] += math.log(0.7)
    torch.testing.assert_close(
        logistic_mixture_sample(params, uniforms, channels, temperature=0.7),
        logistic_mixture_sample(warm, uniforms, channels),
        rtol=1e-12,
        atol=1e-12,
    )


def test_largest_and_smallest_uniform_draw_something_finite() -> None:
    params = torch.zeros(1, 30, 1, 2)
    uniforms = torch.tensor([0.5 * 2**-23, 1 - 0.5 * 2**-23]).expand(1, 4, 1, 2)
    assert logistic_mixture_sample(params, uniforms, 1).isfinite().all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"uniforms": torch.rand(1, 3, 2, 2)}, r"uniforms must have shape \(1, 4, 2, 2\), got"),
        ({"image_channels": 2}, "image_channels must be 1 or 3, got 2"),
        ({"image_channels": 3}, r"params must have shape \(B, 10K, H, W\)"),
        ({"temperature": 0.0}, "temperature must be positive and finite, got 0.0"),
        ({"temperature": math.inf}, "temperature must be positive and finite, got inf"),
        ({"likelihood": "legacy"}, "likelihood must be one of"),
    ],
)
def test_bad_arguments_of_a_draw(arguments: dict[str, Any], message: str) -> None:
    good = {"params": torch.zeros(1, 6, 2, 2), "uniforms": torch.rand(1, 4, 2, 2)}
    with pytest.raises(ValueError, match=message):
        logistic_mixture_sample(**{**good, "image_channels": 1, **arguments})
