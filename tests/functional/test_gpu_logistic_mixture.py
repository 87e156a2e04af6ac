"""The logistic mixture on a CUDA device against float64."""

from __future__ import annotations

import pytest
import torch

from tests.helpers.mixture_cases import (
    MIXTURES,
    assert_as_exact_as_eager,
    avoid_kink,
    each_mixture,
    log_prob_of,
    n_atoms,
    random_case,
    value_and_gradients,
)

pytestmark = pytest.mark.gpu
SIZES = [((5, 28, 28), 10), ((3, 9, 11), 5), ((1, 1, 1), 1)]  # images, and components


@pytest.mark.parametrize("last", [False, True], ids=["contiguous", "channels_last"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@each_mixture
@pytest.mark.parametrize("impl", ["triton", "auto"])
def test_as_exact_as_eager(impl, channels, mixture, dtype, last) -> None:
    for size, n_mix in SIZES:
        case = random_case(channels, mixture, n_mix=n_mix, size=size)
        x, params = (t.float().to("cuda", dtype) for t in case)
        avoid_kink(params, channels, n_atoms(mixture))
        if last:
            params = params.to(memory_format=torch.channels_last)
        got = value_and_gradients(log_prob_of(mixture, impl), x, params)
        assert_as_exact_as_eager(got, x, params, **MIXTURES[mixture])
