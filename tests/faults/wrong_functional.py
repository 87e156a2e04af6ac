"""Activations, shifts, draws of mixtures and the choice of an implementation, for wrong calls."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from dsmooth import functional
from tests.faults.harness import Arguments, Target, exact, guarded, random_tensor, run

# ---- activations and shifts -------------------------------------------------------------------


def _concat_elu(given: Arguments) -> list[Tensor]:
    x = exact(given["x"])
    assert x.ndim == 4
    return [torch.cat([torch.where(v > 0, v, torch.expm1(v)) for v in (x, -x)], dim=1)]


def _shifted(given: Arguments, rows: int, cols: int) -> list[Tensor]:
    x = given["x"]
    assert x.ndim == 4
    assert x.layout == torch.strided
    y = torch.zeros_like(x)
    y[:, :, rows:, cols:] = x.detach()[:, :, : x.shape[2] - rows, : x.shape[3] - cols]
    return [y]


def _call(name: str, given: Arguments) -> list[Tensor]:
    y = getattr(functional, name)(**given)
    return [y.detach()]


# ---- mixtures, and the choice of an implementation --------------------------------------------


def _sample_arguments(channels: int) -> Arguments:
    generator = torch.Generator().manual_seed(3)
    params = torch.randn(2, (3 if channels == 1 else 10) * 2 + 2, 2, 3, generator=generator)
    uniforms = torch.rand(2, 4, 2, 3, generator=generator) * 0.9 + 0.05
    return {
        "params": guarded(params),
        "uniforms": guarded(uniforms),
        "image_channels": channels,
        "likelihood": "discretized",
        "temperature": 0.7,
        "atoms": (0, 255),
        "smoothing_scale": 0.0,
    }


def _sample(given: Arguments) -> list[Tensor]:
    return [functional.logistic_mixture_sample(**given).detach()]


def _expected_sample(given: Arguments) -> list[Tensor]:
    """The same in float64: a shape that does not fit raises here too."""
    tensors = {name: exact(given[name]).contiguous() for name in ("params", "uniforms")}
    assert tensors["uniforms"].shape[1] == 4
    assert 0 < given["temperature"] < float("inf")
    return _sample({**given, **tensors})


def _used_impl(given: Arguments) -> list[Tensor]:
    x, weight = torch.ones(1, 1, 2, 2), torch.ones(1, 1, 1, 1)
    with functional.use_impl(**given):
        return [functional.shifted_conv2d(x, weight)]


def _expected_impl(given: Arguments) -> list[Tensor]:
    assert given["impl"] in ("auto", "reference", "native")
    return [torch.ones(1, 1, 2, 2)]


VALUES: dict[str, list[Any]] = {
    "impl": ["reference", "native", "triton", "bogus"],
    "image_channels": [-1, 0, 2, 3, 4, 1.0, "x"],
    "likelihood": ["continuous", "gaussian", "bogus", "", 3],
    "temperature": [0.0, -1.0, float("nan"), float("inf"), "x", 2.0],
    "atoms": [(), (0,), (0, 0), (256, 1), (-1, 2), (0, 1, 2), "x"],
    "smoothing_scale": [0.5, -1.0, float("nan"), "x"],
}
TARGETS = [
    Target(
        "functional.concat_elu",
        lambda: {"x": random_tensor(2, 3, 4, 5)},
        lambda given: _call("concat_elu", given),
        _concat_elu,
        VALUES,
    ),
    *(
        Target(
            f"functional.{name}",
            lambda: {"x": random_tensor(2, 3, 4, 5)},
            lambda given, name=name: _call(name, given),
            lambda given, by=by: _shifted(given, *by),
            VALUES,
        )
        for name, by in (("down_shift", (1, 0)), ("right_shift", (0, 1)))
    ),
    *(
        Target(
            f"functional.logistic_mixture_sample, C = {channels}",
            lambda channels=channels: _sample_arguments(channels),
            _sample,
            _expected_sample,
            VALUES,
        )
        for channels in (1, 3)
    ),
    Target("functional.use_impl", lambda: {"impl": "auto"}, _used_impl, _expected_impl, VALUES),
]


@pytest.mark.parametrize("target", TARGETS, ids=[target.name for target in TARGETS])
def test_a_wrong_call_raises_or_answers_rightly(target: Target) -> None:
    run(target, examples=100)
