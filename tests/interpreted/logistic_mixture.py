"""Laws of the logistic mixture's Triton kernels, under Triton's interpreter.

    TRITON_INTERPRET=1 pytest -n0 tests/interpreted/logistic_mixture.py

Run by test_interpreter.py. Shapes are small: the interpreter takes some 50 ms for a program.
"""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from dsmooth.functional import logistic_mixture_log_prob, use_impl
from dsmooth.functional.logistic_mixture_triton import triton_backward, triton_log_prob
from dsmooth.kernels import logistic_mixture as kernels
from dsmooth.kernels.launch import INTERPRETED
from tests.helpers import interpreter_speed  # noqa: F401 - for its effect
from tests.helpers.mixture_cases import (
    GOLDEN,
    GOLDEN_CASES,
    LEVELS,
    LIKELIHOODS,
    MIXTURES,
    Gradients,
    assert_as_exact_as_eager,
    avoid_kink,
    float_case,
    golden_inputs,
    n_atoms,
    n_params,
    random_case,
    value_and_gradients,
)

assert INTERPRETED, "run with TRITON_INTERPRET=1"

pytestmark = pytest.mark.grid
each_likelihood = pytest.mark.parametrize("likelihood", LIKELIHOODS)
each_channels = pytest.mark.parametrize("channels", [1, 3])
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
each_mixture = pytest.mark.parametrize("mixture", MIXTURES)


def run(x: Tensor, params: Tensor, likelihood: Any, **options: Any) -> Gradients:
    return value_and_gradients(
        lambda x, p: logistic_mixture_log_prob(x, p, likelihood, impl="triton", **options),
        x,
        params,
    )


def case(channels: int, likelihood: str, **options: Any) -> tuple[Tensor, Tensor]:
    x, params = random_case(channels, likelihood, **options)
    return x.float(), params.float()


def op_arguments(mixture: str) -> tuple[str, list[int], float]:
    options = MIXTURES[mixture]
    return (
        options["likelihood"],
        list(options.get("atoms", ())),
        options.get("smoothing_scale", 0.0),
    )


@each_likelihood
@pytest.mark.parametrize("name", GOLDEN_CASES)
def test_golden_values(name: str, likelihood: Any) -> None:
    golden = GOLDEN[name]
    narrow = "narrow" in name
    got = run(*(t.float() for t in golden_inputs(golden, narrow)), likelihood)
    expected = torch.tensor(golden[f"{likelihood}_log_prob"], dtype=torch.float64)
    # Rounding x and params to float32 moves z by 6e-8 divided by the scale, at most e^7 times.
    close = 2e-4 if narrow else 2e-6
    torch.testing.assert_close(got[0].double().flatten(), expected, rtol=close, atol=0)
    assert got[2].abs().sum().item() == pytest.approx(
        golden[f"{likelihood}_grad_params_abs_sum"], rel=close
    )


@each_likelihood
@each_channels
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    ("size", "n_mix"),
    [((3, 9, 11), 10), ((2, 5, 7), 5), ((1, 1, 1), 5), ((1, 13, 13), 1), ((2, 1, 3), 17)],
    ids=str,
)
def test_as_exact_as_eager(
    size: tuple[int, int, int], n_mix: int, dtype: torch.dtype, channels: int, likelihood: Any
) -> None:
    x, params = (t.to(dtype) for t in case(channels, likelihood, n_mix=n_mix, size=size))
    avoid_kink(params, channels)
    got = run(x, params, likelihood)
    assert got[0].dtype == torch.float32
    assert_as_exact_as_eager(got, x, params, likelihood)


@each_likelihood
def test_inputs_of_two_dtypes(likelihood: Any) -> None:
    x, params = case(3, likelihood, size=(1, 2, 3))
    got = run(x, params.bfloat16(), likelihood)
    assert [g.dtype for g in got] == [torch.float32, torch.float32, torch.bfloat16]
    assert_as_exact_as_eager(got, x, params.bfloat16(), likelihood)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        for g, w in zip(run(x, params.bfloat16(), likelihood), got, strict=True):
            assert torch.equal(g, w)


@pytest.mark.parametrize("log_scale", [-100.0, -6.9, 40.0, 80.0, 95.0])
@pytest.mark.parametrize("mean", [0.3, -1000.0])
@each_likelihood
def test_extremes(likelihood: Any, mean: float, log_scale: float) -> None:
    """Every level, seen from near and from 10^6 scales away, and at the narrowest and at scales
    whose 1 - e^-D underflows."""
    params = torch.tensor([0, mean, log_scale]).view(1, 3, 1, 1).expand(1, 3, 1, 256)
    x = LEVELS.float().view(1, 1, 1, 256)
    got = run(x, params, likelihood)
    assert all(g.isfinite().all() for g in got)
    assert_as_exact_as_eager(got, x, params, likelihood)
    if log_scale < -7:
        assert (got[2][:, 2] == 0).all()  # clamped: no gradient


@pytest.mark.parametrize("log_scale", [-8.0, -4.0, 0.0, 3.0])
def test_masses_sum_to_one(log_scale: float) -> None:
    parts = torch.tensor([0.4, 0, -0.2, 0.7, log_scale, -2])
    params = parts.view(1, 6, 1, 1).expand(1, 6, 1, 256)
    log_prob = logistic_mixture_log_prob(
        LEVELS.float().view(1, 1, 1, 256), params, "discretized", "triton"
    )
    assert log_prob.double().exp().sum().item() == pytest.approx(1, abs=2e-6)


@each_mixture
@each_channels
def test_any_strides_give_the_same_bits(channels: int, mixture: str) -> None:
    x, params, options = float_case(channels, mixture, size=(2, 6, 10))
    want = run(x, params, **options)
    last = torch.channels_last
    layouts = [
        (x.to(memory_format=last), params.to(memory_format=last)),
        (x, params.to(memory_format=last)),
        (x.transpose(2, 3).contiguous().transpose(2, 3), params),
        (x, torch.cat([params, params], dim=3)[..., 10:]),
        (x, torch.cat([params, params], dim=1)[:, : params.shape[1]]),
    ]
    for x_view, params_view in layouts:
        leaves = x_view.detach().requires_grad_(), params_view.detach().requires_grad_()
        log_prob = logistic_mixture_log_prob(*leaves, impl="triton", **options)
        gradients = torch.autograd.grad(log_prob.sum(), leaves)
        for g, w in zip((log_prob, *gradients), want, strict=True):
            assert torch.equal(g, w)
        is_last = params_view.is_contiguous(memory_format=last)
        assert gradients[1].is_contiguous(memory_format=last) == is_last
        assert gradients[1].is_contiguous() == (not is_last)
    expanded = x[:1].expand(2, -1, -1, -1)
    for g, w in zip(
        run(expanded, params, **options),
        run(expanded.contiguous(), params, **options),
        strict=True,
    ):
        assert torch.equal(g, w)


@pytest.mark.parametrize("size", [(0, 4, 4), (2, 0, 4), (2, 4, 0)], ids=str)
@each_mixture
@each_channels
def test_empty(channels: int, mixture: str, size: tuple[int, int, int]) -> None:
    x, params, options = float_case(channels, mixture, size=size)
    got = run(x, params, **options)
    assert [g.shape for g in got] == [size, x.shape, params.shape]


@pytest.mark.parametrize("last", [False, True], ids=["contiguous", "channels_last"])
@each_mixture
@each_channels
def test_nothing_is_written_outside_the_outputs(channels: int, mixture: str, last: bool) -> None:
    """Outputs lie between canaries and are NaN before: every element is written, and no other."""
    canary = 123.5
    for n_mix, width in ((3, 11), (10, 33)):
        x, params, options = float_case(channels, mixture, n_mix=n_mix, size=(2, 1, width))
        shapes = {"log_prob": (2, 1, width), "grad_x": x.shape, "grad_params": params.shape}
        buffers = {k: torch.full((math.prod(s) + 128,), canary) for k, s in shapes.items()}
        views = {k: b[64:-64].fill_(math.nan).view(shapes[k]) for k, b in buffers.items()}
        if last:
            views["grad_params"] = (
                buffers["grad_params"][64:-64].view(2, 1, width, -1).permute(0, 3, 1, 2)
            )
            params = params.to(memory_format=torch.channels_last)
        kernels.log_prob(x, params, **views, **options)
        for name in ("grad_x", "grad_params"):
            kernels.scale(views[name], torch.ones(2, 1, width), views[name])
        for name, buffer in buffers.items():
            assert (buffer[:64] == canary).all(), name
            assert (buffer[-64:] == canary).all(), name
            assert views[name].isfinite().all(), name


@each_mixture
def test_the_tile_changes_no_bit(mixture: str) -> None:
    x, params, options = float_case(3, mixture, size=(1, 3, 7))
    results = []
    for tiling in (None, kernels.Tiling(4, 4, 1), kernels.Tiling(16, 4, 8)):
        outputs = torch.zeros(1, 3, 7), torch.zeros_like(x), torch.zeros_like(params)
        kernels.log_prob(x, params, *outputs, **options, tiling=tiling)
        results.append(outputs)
    assert results[0][0].any()
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


# Triton's interpreter takes the maximum of a pixel that is NaN throughout by np.nanmax, and where
# -inf of an atom elsewhere is among the NaN, subtracts -inf from -inf.
@pytest.mark.filterwarnings("ignore:All-NaN slice encountered:RuntimeWarning")
@pytest.mark.filterwarnings("ignore:invalid value encountered in subtract:RuntimeWarning")
@each_mixture
@each_channels
def test_nan_is_never_hidden(channels: int, mixture: str) -> None:
    """A NaN in any one channel of x or params makes its pixel NaN, and no other."""
    n_mix = 2
    total = n_params(channels, n_mix) + n_atoms(mixture) + channels
    x, params, options = float_case(channels, mixture, n_mix=n_mix, size=(1, 1, total + 1))
    clean = run(x, params, **options)
    for pixel in range(params.shape[1]):
        params[:, pixel, :, pixel] = math.nan
    for c in range(channels):
        x[:, c, :, params.shape[1] + c] = math.nan
    got = run(x, params, **options)
    assert got[0][..., :-1].isnan().all()
    assert got[2][..., :-1].isnan().any(dim=1).all()
    for dirty, pure in zip(got, clean, strict=True):
        assert torch.equal(dirty[..., -1], pure[..., -1])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_gradient_of_a_weighted_sum(dtype: torch.dtype) -> None:
    """Weights per pixel, with strides of every kind: adjacent, of a transposed image, and 0."""
    x, params = (t.to(dtype) for t in case(3, "continuous", size=(2, 3, 5)))
    _, *units = run(x, params, "continuous")
    weights = torch.randn(2, 3, 5, generator=torch.Generator().manual_seed(0))
    for w in (weights, weights.transpose(1, 2).contiguous().transpose(1, 2), weights[:1, :1, :1]):
        w = w.expand(2, 3, 5)
        leaves = x.clone().requires_grad_(), params.clone().requires_grad_()
        log_prob = logistic_mixture_log_prob(*leaves, impl="triton")
        gradients = torch.autograd.grad(log_prob, leaves, w)
        for gradient, unit in zip(gradients, units, strict=True):
            want = (unit.float() * w[:, None]).to(dtype)
            # Triton's interpreter cuts bfloat16 off where a GPU rounds.
            off = torch.finfo(dtype).eps if dtype == torch.bfloat16 else 0
            torch.testing.assert_close(gradient, want, rtol=off, atol=0)


@each_mixture
def test_only_the_wanted_gradient_is_computed(mixture: str) -> None:
    x, params, options = float_case(1, mixture)
    params.requires_grad_()
    log_prob = logistic_mixture_log_prob(x, params, impl="triton", **options)
    (grad,) = torch.autograd.grad(log_prob.sum(), params)
    assert torch.equal(grad, run(x, params, **options)[2])
    with torch.no_grad():
        assert not logistic_mixture_log_prob(x, params, impl="triton", **options).requires_grad
    for needs in ((True, False), (False, True), (False, False)):
        _, *units = triton_log_prob(x, params.detach(), *op_arguments(mixture), *needs)
        gradients = triton_backward(torch.ones(2, 5, 7), *units)
        assert [unit.numel() > 0 for unit in units] == list(needs)
        assert [gradient.numel() > 0 for gradient in gradients] == list(needs)


def test_a_graph_that_is_kept_gives_its_gradient_again() -> None:
    x, params = case(3, "discretized", size=(1, 2, 3))
    inputs = x.requires_grad_(), params.requires_grad_()
    log_prob = logistic_mixture_log_prob(*inputs, "discretized", impl="triton")
    weights = torch.randn(log_prob.shape, generator=torch.Generator().manual_seed(0))
    first = torch.autograd.grad((log_prob * weights).sum(), inputs, retain_graph=True)
    kept = [gradient.clone() for gradient in first]
    doubled = torch.autograd.grad((log_prob * weights).sum() * 2, inputs)
    for a, b, c in zip(first, kept, doubled, strict=True):
        assert torch.equal(a, b)
        torch.testing.assert_close(2 * a, c, rtol=0, atol=1e-37)  # doubling denormals may round


def test_second_derivative_is_refused_not_lost() -> None:
    x, params = case(1, "continuous", size=(1, 1, 2))
    params.requires_grad_()
    log_prob = logistic_mixture_log_prob(x, params, impl="triton").sum()
    with pytest.raises(NotImplementedError, match="use impl='reference'"):
        torch.autograd.grad(log_prob, params, create_graph=True)


# opcheck reads .grad of the clones that it makes; the warning is about its own tensors
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")
@each_mixture
def test_opcheck(mixture: str) -> None:
    x, params, _ = float_case(3, mixture, n_mix=2, size=(2, 1, 3))
    x, params = x.bfloat16(), params.bfloat16()
    last = params.to(memory_format=torch.channels_last)
    what = op_arguments(mixture)
    torch.library.opcheck(triton_log_prob, (x, params, *what, False, False))
    for layout in (params, last):
        leaves = x.clone().requires_grad_(), layout.clone().requires_grad_()
        torch.library.opcheck(triton_log_prob, (*leaves, *what, True, True))
        _, *units = triton_log_prob(x, layout, *what, True, True)
        torch.library.opcheck(triton_backward, (torch.randn(2, 1, 3), *units))


@pytest.mark.full
@each_mixture
def test_compiles_without_a_break(mixture: str) -> None:
    def loss(x: Tensor, params: Tensor) -> Tensor:
        return -logistic_mixture_log_prob(x, params, **options).mean()

    x, params, options = float_case(1, mixture, n_mix=2, size=(1, 2, 3))
    with use_impl("triton"):
        compiled = torch.compile(loss, fullgraph=True)
        for got, want in zip(
            value_and_gradients(compiled, x, params),
            value_and_gradients(loss, x, params),
            strict=True,
        ):
            torch.testing.assert_close(got, want, rtol=1e-6, atol=1e-7)


def test_auto_does_not_interpret() -> None:
    """On the CPU the interpreter must be asked for: it is no implementation to fall into."""
    x, params = case(1, "continuous")
    auto = logistic_mixture_log_prob(x, params)
    assert torch.equal(auto, logistic_mixture_log_prob(x.clone(), params.clone()))
    assert not torch.equal(auto, logistic_mixture_log_prob(x, params, impl="triton"))
