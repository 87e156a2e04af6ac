"""The compiled Triton kernels compute what their references do, in every dtype.

Kernels for compute capability 8.0 as a GPU would get them, launched by their own launchers. Each
test holds a result's error to twice that of eager PyTorch and a rounding, and the player holds
every access to what memory.py allows.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch

pytest.importorskip("triton")

from dsmooth.functional import logistic_mixture_log_prob
from dsmooth.kernels import logistic_mixture as mixture_kernels
from tests.helpers.aot_launches import KERNELS
from tests.helpers.gated_cases import EPS, assert_as_good, make_case
from tests.helpers.mixture_cases import (
    MIXTURES,
    assert_as_exact_as_eager,
    avoid_kink,
    n_atoms,
    random_case,
    value_and_gradients,
)
from tests.ptx.memory import Memory
from tests.ptx.triton_player import played

pytestmark = pytest.mark.grid
DTYPES = [torch.bfloat16, torch.float16, torch.float32]
MIXTURE_KERNELS = {mixture_kernels: ["log_prob_kernel", "scale_kernel"]}
each_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)


@each_dtype
@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_gated_block(dropout: float, dtype: torch.dtype) -> None:
    """Forward and backward: packing, both convolutions, gate, dropout, every gradient."""
    shape = ("down_right", (1, 3, 5), 5, (5, 3)) if dropout else ("down", (2, 2, 3), 4, ())
    case = make_case(*shape, dropout, dtype, gains=dropout > 0)
    with played(KERNELS, Memory(1 << 22)) as player:
        got = case.run("triton", dtype, keep_gates=dropout > 0)
    matmuls = {"hidden_kernel", "hidden_gradient_kernel", "input_gradient_kernel"}
    assert matmuls | {"gate_kernel", "parameter_gradient_kernel"} <= set(player.launches)
    assert player.launches.count("gate_kernel") == (1 if dropout else 2)
    exact, eager = (case.run("reference", d) for d in (torch.float64, dtype))
    assert_as_good(got, eager, exact, EPS[dtype])


@each_dtype
@pytest.mark.parametrize("mixture", list(MIXTURES))
@pytest.mark.parametrize("channels", [1, 3])
def test_logistic_mixture(channels: int, mixture: str, dtype: torch.dtype) -> None:
    if (channels == 1) != (mixture in ("continuous", "gaussian")) and dtype != torch.bfloat16:
        pytest.skip("one dtype is enough for every pair")
    x, params = (t.to(dtype) for t in random_case(channels, mixture, size=(1, 4, 6)))
    avoid_kink(params, channels, n_atoms(mixture))
    options = dict(MIXTURES[mixture])
    likelihood: Any = options.pop("likelihood")
    with played(MIXTURE_KERNELS, Memory(1 << 22)):
        got = value_and_gradients(
            lambda x, p: logistic_mixture_log_prob(x, p, likelihood, impl="triton", **options),
            x, params,
        )  # fmt: skip
    assert_as_exact_as_eager(got, x, params, likelihood, **options)
