"""Activations, shifts, dropout, draws of mixtures and the rest, for wrong calls: see harness.py."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from dsmooth import functional
from dsmooth.functional.dropout import draw_seed, dropout_factors, keep_from
from dsmooth.philox import Stream
from tests.faults.harness import Arguments, Target, exact, guarded, random_tensor, run
from tests.helpers.random_words import words_of

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


# ---- dropout ----------------------------------------------------------------------------------


def _factors(given: Arguments) -> list[Tensor]:
    return [dropout_factors(**given)]


def _expected_factors(given: Arguments) -> list[Tensor]:
    batch, channels, rows, cols = given["shape"]
    assert min(given["shape"]) >= 0
    seed, dropout = given["seed"], given["dropout"]
    assert seed.shape == ()
    assert seed.dtype == torch.int64
    assert 0 <= dropout < 1
    key = int(seed) & 0xFFFFFFFF, int(seed) >> 32 & 0xFFFFFFFF
    stream = int(Stream.DROPOUT)
    kept = []
    for number in range(batch * rows * cols * channels):
        counter = (number // 4, 0, given["layer"] & 0xFFFFFFFF, stream)
        kept.append((words_of(counter, key)[number % 4] >> 9) + 0.5 >= dropout * 2**23)
    factors = torch.tensor(kept, dtype=torch.float64) / (1 - dropout)
    return [factors.view(batch, rows, cols, channels).permute(0, 3, 1, 2)]


def _factors_arguments() -> Arguments:
    return {
        "shape": torch.Size((2, 3, 2, 3)),
        "dropout": 0.25,
        "seed": guarded(torch.tensor(2**40 + 5)),
        "layer": 3,
    }


def _drawn_seed(given: Arguments) -> list[Tensor]:
    torch.manual_seed(0)
    return [draw_seed(**given)]


def _expected_seed(given: Arguments) -> list[Tensor]:
    device = torch.device(given["device"] or "cpu")
    torch.manual_seed(0)
    return [torch.randint(2**63 - 1, (), device=device)]


def _keep_from(given: Arguments) -> list[Tensor]:
    return [torch.tensor(keep_from(**given))]


def _expected_keep_from(given: Arguments) -> list[Tensor]:
    assert 0 <= given["dropout"] < 1
    numbers = torch.arange(2**23)
    return [((numbers + 0.5) * 2.0**-23 < given["dropout"]).sum()]


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
    "dropout": [0.0, 0.5, 1.0, -0.5, 2.0, float("nan"), "x"],
    "layer": [-1, 2**31, 2**70, 1.5, "x"],
    "shape": [(), (2, 3), (2, 3, -1, 1), (0, 3, 2, 2), (2, 3, 2.0, 2), "x"],
    "device": ["meta", "bogus", 3, 1.5],
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
    Target(
        "functional.dropout.dropout_factors",
        _factors_arguments,
        _factors,
        _expected_factors,
        VALUES,
    ),
    Target(
        "functional.dropout.draw_seed",
        lambda: {"device": torch.device("cpu")},
        _drawn_seed,
        _expected_seed,
        VALUES,
    ),
    Target(
        "functional.dropout.keep_from",
        lambda: {"dropout": 0.5},
        _keep_from,
        _expected_keep_from,
        VALUES,
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
