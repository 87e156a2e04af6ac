"""Laws of the mixture: values, gradients and draws of each kind of component, by every op."""

from __future__ import annotations

import importlib.util
import json
import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from dsmooth import _extension
from dsmooth.functional import (
    logistic_mixture_log_prob,
    logistic_mixture_log_prob_ref,
    logistic_mixture_sample,
    use_impl,
)
from dsmooth.functional.logistic_mixture import Mixture as Channels
from dsmooth.functional.logistic_mixture import snap_to_bytes
from dsmooth.pixels import value_of
from tests.helpers.data_makers import refuses
from tests.helpers.gated_cases import INTERPRETED, each_fast_impl, each_impl, needs_extension
from tests.helpers.mixture_cases import (
    CASES,
    LEVELS,
    MIXTURES,
    Gradients,
    Mixture,
    assert_as_exact_as_eager,
    avoid_kink,
    each_likelihood,
    each_mixture,
    each_run,
    log_prob_of,
    n_atoms,
    n_params,
    options_of,
    random_case,
    raw_parts,
    value_and_gradients,
)

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "logistic_mixture.json").read_text())
KINDS: list[tuple[int, Mixture]] = CASES
DTYPES = [torch.float32, torch.float64]
SIZES = [((3, 9, 19), 5), ((0, 4, 4), 4), ((2, 0, 4), 4), ((2, 4, 0), 4)]
if INTERPRETED:
    narrow, wide = ({"likelihood": "gaussian", "smoothing_scale": s} for s in (0.02, 30.0))
    KINDS = [*CASES, (1, narrow), (3, wide)]
    DTYPES = [torch.float32, torch.bfloat16, torch.float16]
    SIZES += [((3, 9, 11), 10), ((2, 5, 7), 5), ((1, 13, 13), 1), ((1, 1, 1), 5), ((2, 1, 3), 17)]


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
@each_impl
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


@each_impl
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


@each_impl
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


@pytest.mark.parametrize("channels", [1, 3])
def test_a_gaussian_component_is_a_normal_that_contains_the_noise(channels: int) -> None:
    x, params = random_case(channels, "gaussian", n_mix=1, size=(2, 3, 4))
    raw_parts(params, channels)[:, :, 1].clamp_(-6, 2)
    # About where the reference splits a scale, whose square float32 does not hold.
    raw_parts(params, channels)[:, :, 1, ..., -1] += 44
    got = logistic_mixture_log_prob_ref(x, params, "gaussian", smoothing_scale=0.5)
    mixture = Channels.of(params, channels)
    means, coefficients = mixture.means[..., 0, :, :], mixture.coefficients[:, :, 0]
    scales = (mixture.log_scales[..., 0, :, :].exp().square() + 0.25).sqrt()
    if channels == 3:
        red, green, _ = x.unbind(1)
        terms = torch.stack([0 * red, red, red, green], 1) * coefficients[:, [0, 0, 1, 2]]
        means = means + torch.stack([terms[:, 0], terms[:, 1], terms[:, 2] + terms[:, 3]], 1)
    expected = torch.distributions.Normal(means, scales).log_prob(x).sum(1)
    torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-12)
    got = logistic_mixture_log_prob_ref(x.float(), params.float(), "gaussian", smoothing_scale=0.5)
    torch.testing.assert_close(got.double(), expected, rtol=1e-5, atol=1e-4)


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
    layout = torch.channels_last if last else torch.contiguous_format
    params = params.contiguous(memory_format=layout)
    got = run(x, params, mixture)
    assert got[2].is_contiguous(memory_format=layout) or not (INTERPRETED and x.numel())
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
@each_run
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("sign", [-1, 1])
@each_mixture
def test_an_infinite_pixel_is_impossible(mixture, sign, dtype, channels, run) -> None:
    """Its log-likelihood is -inf and its gradient NaN, as the reference's; no other pixel's is."""
    x, params = (t.to(dtype) for t in random_case(channels, mixture, size=(1, 1, 21)))
    raw_parts(params, channels, n_atoms(mixture))[:, :, 1].clamp_(max=2)
    clean = run(x, params, mixture)
    x[:, -1, :, ::5] = sign * math.inf
    got = run(x, params, mixture)
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
@each_run
@pytest.mark.parametrize(
    ("size", "n_mix"), [((2, 5, 7), 4), ((1, 1, 1), 2), ((1, 3, 1), 7), ((1, 2, 13), 12)], ids=str
)
@each_mixture
def test_a_logit_of_minus_infinity_removes_its_component(mixture, channels, size, n_mix, run):
    """The first component and the first atom, whatever the pixel."""
    x, params = random_case(channels, mixture, size=size, n_mix=n_mix)
    params[:, [0, n_mix] if n_atoms(mixture) else [0]] = -math.inf
    got = run(x, params, mixture)
    want = value_and_gradients(log_prob_of(mixture, "reference"), x, params)
    for g, w in zip(got, want, strict=True):
        torch.testing.assert_close(g, w, rtol=1e-11, atol=1e-13 * (w.abs().max().item() + 1))


def uniforms_of(n: int, seed: int = 5) -> Tensor:
    """(1, 4, 1, n) uniforms on the sampler's grid: (integer + 1/2) / 2^23."""
    generator = torch.Generator().manual_seed(seed)
    words = torch.randint(0, 2**23, (1, 4, 1, n), generator=generator)
    return (words.double() + 0.5) * 2.0**-23


def test_a_colour_is_drawn_given_the_earlier_ones() -> None:
    """One component, so the noise is known: the earlier colours moved the means as drawn."""
    _, params = random_case(3, "continuous", n_mix=1, size=(2, 3, 4))
    uniforms = uniforms_of(24).view(4, 2, 3, 4).transpose(0, 1)
    mixture = Channels.of(params, 3)
    noise = mixture.log_scales.clamp(min=-7).exp()[:, :, 0] * torch.logit(uniforms[:, 1:])
    own = (mixture.means[:, :, 0] + noise).unbind(1)
    by_red, blue_by_red, by_green = mixture.coefficients[:, :, 0].unbind(1)
    for likelihood, snap in (("continuous", lambda x: x), ("discretized", snap_to_bytes)):
        x = logistic_mixture_sample(params, uniforms, 3, likelihood)
        red, green, blue = x.unbind(1)
        torch.testing.assert_close(red, snap(own[0]))
        torch.testing.assert_close(green, snap(own[1] + by_red * red))
        torch.testing.assert_close(blue, snap(own[2] + blue_by_red * red + by_green * green))


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
def test_wrong_arguments_of_a_draw_are_refused(changes: dict[str, Any], message: str) -> None:
    good = {"params": torch.zeros(1, 6, 2, 3), "uniforms": torch.full((1, 4, 2, 3), 0.5)}
    good |= {"image_channels": 1, "likelihood": "discretized"}
    logistic_mixture_sample(**good)
    refuses(message, logistic_mixture_sample, error=(ValueError, TypeError), **{**good, **changes})


HALVES = [torch.bfloat16, torch.float16]
WEIGHED = [torch.float32, *HALVES] if INTERPRETED else [torch.float64]


# Triton's interpreter takes the maximum of a pixel that is NaN throughout by np.nanmax, and where
# -inf of an atom elsewhere is among the NaN, subtracts -inf from -inf.
@pytest.mark.filterwarnings("ignore:All-NaN slice encountered:RuntimeWarning")
@pytest.mark.filterwarnings("ignore:invalid value encountered in subtract:RuntimeWarning")
@pytest.mark.quick
@each_run
@each_mixture
def test_nan_is_never_hidden(channels: int, mixture: str, run: Callable[..., Gradients]) -> None:
    """A NaN in any one channel of x or params makes its pixel NaN, and no other."""
    n_mix = 2
    total = n_params(channels, n_mix) + n_atoms(mixture) + channels
    case = random_case(channels, mixture, n_mix=n_mix, size=(1, 1, total + 1))
    x, params = (t.to(WEIGHED[0]) for t in case)
    clean = run(x, params, mixture)
    for pixel in range(params.shape[1]):
        params[:, pixel, :, pixel] = math.nan
    for c in range(channels):
        x[:, c, :, params.shape[1] + c] = math.nan
    got = run(x, params, mixture)
    assert got[0][..., :-1].isnan().all()
    assert got[2][..., :-1].isnan().any(dim=1).all()
    for dirty, pure in zip(got, clean, strict=True):
        assert torch.equal(dirty[..., -1], pure[..., -1])


@each_fast_impl
@pytest.mark.parametrize("dtype", WEIGHED, ids=str)
def test_gradient_of_a_weighted_sum(dtype: torch.dtype, impl: Any) -> None:
    x, params = (t.to(dtype) for t in random_case(3, "continuous", size=(2, 3, 5)))
    log_prob = log_prob_of("continuous", impl)
    _, *units = value_and_gradients(log_prob, x, params)
    leaves = x.clone().requires_grad_(), params.clone().requires_grad_()
    value = log_prob(*leaves)
    weights = torch.randn(value.shape, generator=torch.Generator().manual_seed(0)).to(value.dtype)
    for gradient, unit in zip(torch.autograd.grad(value, leaves, weights), units, strict=True):
        want = (unit.to(value.dtype) * weights[:, None]).to(dtype)
        # Triton's interpreter cuts bfloat16 off where a GPU rounds; "native" multiplies first.
        off = torch.finfo(dtype).eps if dtype == torch.bfloat16 else 0
        off = 1e-12 if impl == "native" else off
        torch.testing.assert_close(gradient, want, rtol=off, atol=off)


@each_impl
@pytest.mark.parametrize("dtype", HALVES, ids=str)
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
    call = partial(refuses, "no compiler here", logistic_mixture_log_prob, x, params)
    call(error=RuntimeError, impl="native")
    with use_impl("native"):
        call(error=RuntimeError)
        assert torch.equal(logistic_mixture_log_prob(x, params, impl="reference"), reference)
    assert torch.equal(logistic_mixture_log_prob(x, params), reference)
    words = "`impl` must be one of auto, .*, got 'fast'"
    refuses(words, logistic_mixture_log_prob, x, params, impl="fast")


NO_TRITON = importlib.util.find_spec("triton") is None
NOT_THERE = "Triton is not installed"
ON_CPU = NOT_THERE if NO_TRITON else "on cuda tensors, got cpu .*TRITON_INTERPRET=1"


@pytest.mark.parametrize(
    ("impl", "device", "dtype", "reason"),
    [
        ("triton", "cpu", torch.float32, f"with impl='triton': .*{ON_CPU}"),
        ("triton", "cpu", torch.float64, ON_CPU if NO_TRITON else r"got torch\.float64"),
        ("triton", "meta", torch.float32, NOT_THERE if NO_TRITON else "on cuda tensors, got meta"),
        ("native", "meta", torch.float32, "the extension runs on cpu tensors, got meta"),
    ],
)
def test_an_implementation_says_why_it_cannot_run(impl: Any, device, dtype, reason) -> None:
    x, params = (t.to(device, dtype) for t in random_case(1, "continuous"))
    refuses(reason, logistic_mixture_log_prob, x, params, impl=impl, error=RuntimeError)
    assert logistic_mixture_log_prob(x, params).shape == (2, 5, 7)


ZEROS = torch.zeros
ALL = {"likelihood": "discretized", "atoms": "all"}


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"x": ZEROS(1, 2, 4, 4)}, ValueError, "`image_channels` must be one of 1, 3, got 2"),
        ({"x": ZEROS(4, 4)}, ValueError, r"x must have shape .*got \(4, 4\)"),
        ({"params": ZEROS(1, 10, 4, 4)}, ValueError, r"\(B, 3K, H, W\).*\(1, 10, 4, 4\)"),
        ({"x": ZEROS(1, 3, 4, 4)}, ValueError, r"\(B, 10K, H, W\).*\(1, 3, 4, 4\)"),
        ({"x": ZEROS(2, 1, 4, 4)}, ValueError, r"params .*\(2, 3, 4, 4\), got \(1, 3"),
        ({"x": ZEROS(1, 1, 4, 4).int()}, TypeError, "x must be a floating-point"),
        ({"params": ZEROS(1, 3, 4, 4).long()}, TypeError, "params must be a floating"),
        ({"x": ZEROS(1, 1, 4, 4).numpy()}, TypeError, "x must be .*, got ndarray"),
        ({"params": ZEROS(1, 3, 4, 4, device="meta")}, ValueError, "on cpu"),
        ({"x": ZEROS(1, 3, 4, 4), **ALL}, ValueError, r"grey images only, got 3 channels"),
        ({"params": ZEROS(1, 257, 4, 4), **ALL}, ValueError, r"\(B, 3K \+ 256, H, W\).*\(1, 257"),
        ({"likelihood": "discretised"}, ValueError, "discretized, gaussian, got 'discretised'"),
    ],
)
def test_bad_arguments(changes: dict[str, Any], error: type[Exception], message: str) -> None:
    given = {"x": ZEROS(1, 1, 4, 4), "params": ZEROS(1, 3, 4, 4), **changes}
    for log_prob in (logistic_mixture_log_prob, logistic_mixture_log_prob_ref):
        refuses(message, log_prob, error=error, **given)


GPU_SHAPES = [((5, 28, 28), 10), ((3, 9, 11), 5), ((1, 1, 1), 1)]  # images, and components


@pytest.mark.gpu
@pytest.mark.parametrize("last", [False, True], ids=["contiguous", "channels_last"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@each_mixture
@pytest.mark.parametrize("impl", ["triton", "auto"])
def test_as_exact_as_eager_on_a_gpu(impl, channels, mixture, dtype, last) -> None:
    for size, n_mix in GPU_SHAPES:
        case = random_case(channels, mixture, n_mix=n_mix, size=size)
        x, params = (t.float().to("cuda", dtype) for t in case)
        avoid_kink(params, channels, n_atoms(mixture))
        if last:
            params = params.to(memory_format=torch.channels_last)
        got = value_and_gradients(log_prob_of(mixture, impl), x, params)
        assert_as_exact_as_eager(got, x, params, **MIXTURES[mixture])
