"""The native logistic mixture as tests call it: one instruction set, buffers full of NaN."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from dsmooth import _extension
from dsmooth.functional import logistic_mixture_log_prob
from tests.helpers.mixture_cases import LIKELIHOODS, MIXTURES, Gradients

# A machine without a C++ compiler has no extension, and its build record says so; that it is there
# everywhere else is asserted by test_extension.py.
needs_extension = pytest.mark.skipif(
    not _extension.is_available(), reason=str(_extension.unavailable_reason())
)
INSTRUCTION_SETS = _extension.instruction_sets()
both_impls = pytest.mark.parametrize(
    "impl", ["reference", pytest.param("native", marks=needs_extension)]
)
each_likelihood = pytest.mark.parametrize("likelihood", LIKELIHOODS)
each_mixture = pytest.mark.parametrize("mixture", MIXTURES)
each_channels = pytest.mark.parametrize("channels", [1, 3])


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
