"""The logistic mixture in tests: inputs that meet every branch, calls, how exact a result is."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from dsmooth.functional import logistic_mixture_log_prob, logistic_mixture_log_prob_ref
from tests.helpers.gated_cases import INTERPRETED, SETS, pinned

# Keyword arguments of the op; "atoms" is the discretized likelihood with them, for grey images.
MIXTURES: dict[str, dict[str, Any]] = {
    "continuous": {"likelihood": "continuous"},
    "discretized": {"likelihood": "discretized"},
    "gaussian": {"likelihood": "gaussian", "smoothing_scale": 0.3},
    "atoms": {"likelihood": "discretized", "atoms": "all"},
}
LEVELS = torch.arange(256, dtype=torch.float64) / 127.5 - 1
# Times that an error may be eager PyTorch's. The interpreter's exp and log are NumPy's, on some
# processors up to 26 times less exact.
RATIO = 32 if INTERPRETED else 2

each_likelihood = pytest.mark.parametrize("likelihood", ["continuous", "discretized"])
CASES = [(c, m) for c in (1, 3) for m in MIXTURES if (c, m) != (3, "atoms")]


# Channels and mixtures that go together. The interpreter takes seconds for all tiles of atoms.
each_mixture = pytest.mark.parametrize(
    ("channels", "mixture"),
    [pytest.param(*c, marks=[pytest.mark.full] * (INTERPRETED and c[1] == "atoms")) for c in CASES],
)
# At scales of e^40 the reference's slopes cancel to nothing even in float64.
CANCELLED = 1e-30
Mixture = str | dict[str, Any]  # one of MIXTURES, or its like
Gradients = tuple[Tensor, Tensor, Tensor]  # log_prob, and its sum's gradients by x and by params


def n_params(channels: int, n_mix: int) -> int:
    return (3 if channels == 1 else 10) * n_mix


def options_of(mixture: Mixture) -> dict[str, Any]:
    return MIXTURES[mixture] if isinstance(mixture, str) else mixture


def n_atoms(mixture: Mixture) -> int:
    return 256 if options_of(mixture).get("atoms") else 0


def raw_parts(params: Tensor, channels: int, n_atoms: int = 0) -> Tensor:
    """View (B, C, 2 or 3, K, H, W) of means, log-scales and coefficients, to write into."""
    n_mix = (params.shape[1] - n_atoms) // (3 if channels == 1 else 10)
    parts = params[:, n_mix + n_atoms :]
    return parts.unflatten(1, (channels, 2 if channels == 1 else 3, n_mix))


def random_case(
    channels: int, mixture: Mixture, *, n_mix=4, size=(2, 5, 7), seed=0
) -> tuple[Tensor, Tensor]:
    """x and params in float64 of a mixture that meet every branch: edges, far tails, clamped
    and wide scales."""
    generator = torch.Generator().manual_seed(seed)
    batch, height, width = size
    shape = (batch, n_params(channels, n_mix) + n_atoms(mixture), height, width)
    params = torch.randn(shape, generator=generator, dtype=torch.float64)
    log_scales = raw_parts(params, channels, n_atoms(mixture))[:, :, 1]
    log_scales.mul_(3).sub_(3)  # from -12, clamped at -7, to 6
    x = torch.randint(0, 256, (batch, channels, height, width), generator=generator).double()
    x[torch.rand(x.shape, generator=generator) < 0.1] = 0
    x[torch.rand(x.shape, generator=generator) < 0.1] = 255
    options = options_of(mixture)
    x = x / 127.5 - 1
    if options["likelihood"] != "discretized":
        x = x + 0.3 * torch.randn(x.shape, generator=generator, dtype=torch.float64)
    return x, params


def avoid_kink(params: Tensor, channels: int, n_atoms: int = 0) -> None:
    """At the kink itself, which half precision meets, versions of PyTorch differ in the
    derivative."""
    log_scales = raw_parts(params, channels, n_atoms)[:, :, 1]
    log_scales[log_scales == -7] = -7.5


def value_and_gradients(
    function: Callable[[Tensor, Tensor], Tensor], x: Tensor, params: Tensor
) -> Gradients:
    x, params = x.detach().requires_grad_(), params.detach().requires_grad_()
    log_prob = function(x, params)
    grad_x, grad_params = torch.autograd.grad(log_prob.sum(), (x, params))
    return log_prob.detach(), grad_x, grad_params


def assert_as_exact_as_eager(
    got: Gradients, x: Tensor, params: Tensor, likelihood: Any, **options: Any
) -> None:
    """At most RATIO times the error of eager PyTorch on these very inputs, and one rounding, both
    errors measured against float64. For float64 it is eager's float32 error scaled by the epsilons,
    once for each side. options: atoms or smoothing_scale."""

    def reference(x: Tensor, params: Tensor) -> Tensor:
        return logistic_mixture_log_prob_ref(x, params, likelihood, **options)

    wide = got[0].dtype == torch.float64
    exact = value_and_gradients(reference, x.double(), params.double())
    eager = value_and_gradients(reference, *((x.float(), params.float()) if wide else (x, params)))
    for name, result, plain, want in zip(
        ("log_prob", "grad_x", "grad_params"), got, eager, exact, strict=True
    ):
        assert wide or result.dtype == plain.dtype
        assert result.shape == plain.shape
        if want.numel() == 0:
            continue
        error, eager_error = ((t.double() - want).abs().max().item() for t in (result, plain))
        if wide:
            eager_error *= 2 * torch.finfo(result.dtype).eps / torch.finfo(plain.dtype).eps
        rounding = torch.finfo(result.dtype).eps * want.abs().max().item() + CANCELLED
        assert error <= RATIO * eager_error + rounding, (name, error, eager_error, rounding)


def log_prob_of(mixture: Mixture, impl: Any) -> Callable[[Tensor, Tensor], Tensor]:
    """The op for a mixture."""
    return partial(logistic_mixture_log_prob, impl=impl, **options_of(mixture))


def run(impl: str, x: Tensor, params: Tensor, mixture: Mixture) -> Gradients:
    """Value and gradients. impl: may name an instruction set."""
    with pinned(impl) as name:
        return value_and_gradients(log_prob_of(mixture, name), x, params)


RUNS = {impl: partial(run, impl) for impl in (["triton"] if INTERPRETED else SETS)}
each_run = pytest.mark.parametrize("run", RUNS.values(), ids=list(RUNS))
