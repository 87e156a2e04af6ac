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

from dsmooth.functional import (
    logistic_mixture_log_prob,
    logistic_mixture_log_prob_ref,
)
from dsmooth.functional.logistic_mixture_triton import triton_backward, triton_log_prob
from dsmooth.kernels import logistic_mixture as kernels
from dsmooth.kernels.launch import INTERPRETED
from tests.helpers import interpreter_speed  # noqa: F401 - for its effect
from tests.helpers.mixture_cases import (
    LEVELS,
    LIKELIHOODS,
    MIXTURES,
    Gradients,
    assert_as_exact_as_eager,
    avoid_kink,
    float_case,
    random_case,
    value_and_gradients,
    with_atoms,
)
from tests.test_logistic_mixture_op import (  # noqa: F401 - laws of every implementation
    test_a_graph_that_is_kept_gives_its_gradient_again,
    test_any_strides_give_the_same,
    test_compiles_without_a_break,
    test_nan_is_never_hidden,
    test_second_derivative_is_refused_not_lost,
)

assert INTERPRETED, "run with TRITON_INTERPRET=1"

pytestmark = pytest.mark.grid
each_likelihood = pytest.mark.parametrize("likelihood", LIKELIHOODS)
each_channels = pytest.mark.parametrize("channels", [1, 3])
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
each_mixture = pytest.mark.parametrize("mixture", MIXTURES)
KINDS: dict[str, dict[str, Any]] = {
    "continuous": {"likelihood": "continuous"},
    "discretized": {"likelihood": "discretized"},
    **{
        f"gaussian {sigma}": {"likelihood": "gaussian", "smoothing_scale": sigma}
        for sigma in (0.5, 0.02, 30.0)
    },
    # in no order
    **{
        f"{n} atoms": {"likelihood": "discretized", "atoms": [97 * i % 256 for i in range(n)]}
        for n in (1, 5, 33, 256)
    },
}


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


@pytest.mark.parametrize("kind", KINDS)
@each_channels
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    ("size", "n_mix"),
    [((3, 9, 11), 10), ((2, 5, 7), 5), ((1, 1, 1), 5), ((1, 13, 13), 1), ((2, 1, 3), 17)],
    ids=str,
)
def test_as_exact_as_eager(
    size: tuple[int, int, int], n_mix: int, dtype: torch.dtype, channels: int, kind: str
) -> None:
    options = dict(KINDS[kind])
    likelihood = options.pop("likelihood")
    x, params = (t.to(dtype) for t in case(channels, likelihood, n_mix=n_mix, size=size))
    avoid_kink(params, channels)
    if "atoms" in options:
        x, params = with_atoms(x, params, options["atoms"])
    got = run(x, params, likelihood, **options)
    assert got[0].dtype == torch.float32
    assert_as_exact_as_eager(got, x, params, likelihood, **options)


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


def test_an_atom_far_above_the_components_neither_overflows_nor_vanishes() -> None:
    x, params = (t.float() for t in random_case(3, "discretized", size=(1, 1, 2)))
    x[..., 0], x[..., 1] = 1.0, 0.5
    params = torch.cat([params[:, :4], torch.full((1, 2, 1, 2), 1e4), params[:, 4:]], dim=1)
    got = run(x, params, "discretized", atoms=(0, 255))
    assert got[0][0, 0, 0].item() == pytest.approx(-math.log(2), rel=1e-6)
    assert_as_exact_as_eager(got, x, params, "discretized", atoms=(0, 255))


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


# opcheck reads .grad of the clones that it makes; the warning is about its own tensors
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")
@pytest.mark.full
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


def test_auto_does_not_interpret() -> None:
    """On the CPU the interpreter must be asked for: it is no implementation to fall into."""
    x, params = case(1, "continuous")
    auto = logistic_mixture_log_prob(x, params)
    assert torch.equal(auto, logistic_mixture_log_prob(x.clone(), params.clone()))
    assert not torch.equal(auto, logistic_mixture_log_prob(x, params, impl="triton"))
