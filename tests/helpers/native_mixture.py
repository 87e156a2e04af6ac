"""The logistic mixture as tests call it, and the native one in buffers full of NaN.

A process that interprets Triton's kernels judges those by the same laws (tests/interpreted).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from dsmooth import _extension
from dsmooth.functional import logistic_mixture_log_prob
from tests.helpers.gated_cases import INTERPRETED, NATIVE
from tests.helpers.mixture_cases import (
    LIKELIHOODS,
    MIXTURES,
    Gradients,
    random_case,
    value_and_gradients,
)

INSTRUCTION_SETS = _extension.instruction_sets()
each_fast_impl = pytest.mark.parametrize("impl", ["triton"] if INTERPRETED else [NATIVE])
both_impls = pytest.mark.parametrize("impl", ["triton"] if INTERPRETED else ["reference", NATIVE])
each_likelihood = pytest.mark.parametrize("likelihood", LIKELIHOODS)
each_mixture = pytest.mark.parametrize("mixture", MIXTURES)
each_channels = pytest.mark.parametrize("channels", [1, 3])


def widest_case(channels: int, mixture: str, **options: Any) -> tuple[Tensor, Tensor]:
    """random_case in the widest dtype that the implementations of this process take."""
    dtype = torch.float32 if INTERPRETED else torch.float64
    x, params = random_case(channels, mixture, **options)
    return x.to(dtype), params.to(dtype)


def log_prob_of(mixture: str, impl: Any) -> Callable[[Tensor, Tensor], Tensor]:
    """The op for one of MIXTURES."""
    return lambda x, p: logistic_mixture_log_prob(x, p, impl=impl, **MIXTURES[mixture])


def native_mixture(mixture: str | dict[str, Any]) -> dict[str, Any]:
    """One of MIXTURES, or its like, as the extension and the native operator take it."""
    options = MIXTURES[mixture] if isinstance(mixture, str) else mixture
    return {
        "likelihood": options["likelihood"],
        "atoms": list(options.get("atoms", ())),
        "smoothing_scale": options.get("smoothing_scale", 0.0),
    }


def run_native(
    x: Tensor,
    params: Tensor,
    mixture: str | dict[str, Any],
    *,
    instruction_set: str = "auto",
    threads: int = 1,
) -> Gradients:
    """log_prob and the gradients of its sum by the extension, into buffers full of NaN."""
    outputs = native_outputs(x, params)
    call_native(x, params, mixture, outputs, instruction_set=instruction_set, threads=threads)
    return outputs["log_prob"], outputs["grad_x"], outputs["grad_params"]


def native_outputs(x: Tensor, params: Tensor) -> dict[str, Tensor]:
    batch, _, height, width = x.shape
    shapes = {
        "log_prob": (batch, height, width),
        "state": (batch, 4, height, width),
        "grad_x": x.shape,
        "grad_params": params.shape,
    }
    return {name: torch.full(s, math.nan, dtype=x.dtype) for name, s in shapes.items()}


def call_native(
    x: Tensor,
    params: Tensor,
    mixture: str | dict[str, Any],
    outputs: dict[str, Tensor],
    **options: Any,
) -> None:
    """Forward, then backward from a gradient of ones."""
    grad = torch.ones_like(outputs["log_prob"]).contiguous()
    inputs = {"grad": grad, "x": x, "params": params}
    tensors = {**inputs, **outputs}
    options |= native_mixture(mixture)
    extension = _extension.extension()
    forward = ("x", "params", "log_prob", "state")
    backward = ("grad", "x", "params", "state", "grad_x", "grad_params")
    extension.logistic_mixture(**{k: tensors[k] for k in forward}, **options)
    extension.logistic_mixture_backward(**{k: tensors[k] for k in backward}, **options)


def run_triton(x: Tensor, params: Tensor, mixture: str) -> Gradients:
    return value_and_gradients(log_prob_of(mixture, "triton"), x, params)


# Value and gradients by each implementation whose sums are its own.
RUNS: dict[str, Callable[..., Gradients]] = (
    {"triton": run_triton}
    if INTERPRETED
    else {name: partial(run_native, instruction_set=name) for name in INSTRUCTION_SETS}
)
each_run = pytest.mark.parametrize("run", RUNS.values(), ids=list(RUNS))
