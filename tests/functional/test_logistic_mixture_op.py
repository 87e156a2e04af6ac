"""The operator of the logistic mixture: memory, strides, threads, choice, errors."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from dsmooth import _extension
from dsmooth.functional import logistic_mixture_log_prob, logistic_mixture_log_prob_ref, use_impl
from tests.helpers.data_makers import refuses
from tests.helpers.gated_cases import INTERPRETED, each_fast_impl, each_impl
from tests.helpers.mixture_cases import (
    MIXTURES,
    Gradients,
    assert_as_exact_as_eager,
    avoid_kink,
    each_mixture,
    each_run,
    log_prob_of,
    n_atoms,
    n_params,
    random_case,
    value_and_gradients,
    widest_case,
)

HALVES = [torch.bfloat16, torch.float16]
DTYPES = [torch.float32, *HALVES] if INTERPRETED else [torch.float64]


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
    x, params = widest_case(channels, mixture, n_mix=n_mix, size=(1, 1, total + 1))
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


@pytest.mark.grid
@each_impl
@pytest.mark.parametrize(
    ("size", "n_mix"),
    [
        *(((0, 4, 4), 4), ((2, 0, 4), 4), ((2, 4, 0), 4)),
        *(((1, 1, 1), 1), ((1, 3, 1), 7), ((2, 1, 29), 4), ((1, 2, 13), 12)),
    ],
    ids=str,
)
@each_mixture
def test_any_size(channels: int, mixture: str, size: Any, n_mix: int, impl: Any) -> None:
    x, params = widest_case(channels, mixture, size=size, n_mix=n_mix)
    got = value_and_gradients(log_prob_of(mixture, impl), x, params)
    assert [g.shape for g in got] == [(size[0], *size[1:]), x.shape, params.shape]
    if impl == "triton":
        assert_as_exact_as_eager(got, x, params, **MIXTURES[mixture])
        return
    want = value_and_gradients(log_prob_of(mixture, "reference"), x, params)
    for g, w in zip(got, want, strict=True):
        torch.testing.assert_close(g, w, rtol=1e-11, atol=1e-10)


@each_fast_impl
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
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
