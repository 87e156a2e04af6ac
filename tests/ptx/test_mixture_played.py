"""The logistic mixture's compiled CUDA kernels, forward and backward, against float64."""

from __future__ import annotations

import ctypes
from typing import Any

import pytest
import torch
from torch import Tensor

from dsmooth.functional import logistic_mixture_log_prob_ref
from tests.helpers.mixture_cases import (
    MIXTURES,
    assert_as_exact_as_eager,
    avoid_kink,
    n_atoms,
    random_case,
    value_and_gradients,
)
from tests.ptx.cuda_player import NVCC, Built, CudaPlayer, build_mixture
from tests.ptx.memory import Memory

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(NVCC is None, reason="nvcc is not installed"),
]
LIKELIHOODS = {"continuous": 0, "discretized": 1, "gaussian": 2}
STATE = 4  # numbers of a pixel that the forward leaves for the backward


class Call(ctypes.Structure):
    """As in host/logistic_mixture.cpp."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in (
            "x", "params", "grad", "log_prob", "state", "grad_x", "grad_params")),
        *((name, ctypes.c_int64) for name in (
            "batch", "rows", "cols", "n_mix", "channels", "n_params", "likelihood", "n_atoms")),
        ("atoms", ctypes.c_uint8 * 8), ("smoothing_scale", ctypes.c_double),
    )  # fmt: skip


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    base = tmp_path_factory.getbasetemp()
    return build_mixture((base.parent if "gw" in base.name else base) / "played_mixture")


def play(built: Built, x: Tensor, params: Tensor, mixture: str) -> tuple[Tensor, Tensor, Tensor]:
    """log_prob and the gradients of its sum by x and by params."""
    options = MIXTURES[mixture]
    atoms = options.get("atoms", ())
    batch, channels, rows, cols = x.shape
    memory = Memory(1 << 18)
    player = CudaPlayer(built, memory, built.ptx)
    shape, dtype = (batch, rows, cols), x.dtype
    inputs = {"x": x, "params": params, "grad": torch.ones(shape, dtype=dtype)}
    placed = {name: memory.place(t) for name, t in inputs.items()}
    shapes = {"log_prob": shape, "state": (batch, STATE, rows, cols), "grad_x": x.shape,
              "grad_params": params.shape}  # fmt: skip
    placed |= {name: memory.empty(s, dtype, once=True) for name, s in shapes.items()}
    n_mix = (params.shape[1] - len(atoms)) // (3 if channels == 1 else 10)
    call = Call(
        **{name: t.data_ptr() for name, t in placed.items()}, batch=batch, rows=rows, cols=cols,
        n_mix=n_mix, channels=channels, n_params=params.shape[1],
        likelihood=LIKELIHOODS[options["likelihood"]], n_atoms=len(atoms),
        atoms=(ctypes.c_uint8 * 8)(*atoms), smoothing_scale=options.get("smoothing_scale", 0.0),
    )  # fmt: skip
    for backward in (0, 1):
        player.call("logistic_mixture", ctypes.byref(call), int(dtype == torch.float64), backward)
    results = [placed[name] for name in ("log_prob", "grad_x", "grad_params")]
    assert all(memory.written(t).all() for t in results)
    log_prob, grad_x, grad_params = (t.clone() for t in results)
    return log_prob, grad_x, grad_params


CASES: list[tuple[str, int, torch.dtype]] = [
    ("continuous", 1, torch.float32), ("discretized", 3, torch.float32),
    ("atoms", 1, torch.float32), ("gaussian", 3, torch.float32),
    ("continuous", 3, torch.float64), ("discretized", 1, torch.float64),
]  # fmt: skip


@pytest.mark.parametrize(("mixture", "channels", "dtype"), CASES, ids=str)
def test_as_exact_as_eager(mixture: str, channels: int, dtype: torch.dtype, built: Built) -> None:
    x, params = (t.to(dtype) for t in random_case(channels, mixture, size=(3, 7, 9)))
    avoid_kink(params, channels, n_atoms(mixture))
    options: dict[str, Any] = dict(MIXTURES[mixture])
    likelihood = options.pop("likelihood")
    got = play(built, x, params, mixture)
    if dtype != torch.float64:
        return assert_as_exact_as_eager(got, x, params, likelihood, **options)

    def reference(x: Tensor, params: Tensor) -> Tensor:
        return logistic_mixture_log_prob_ref(x, params, likelihood, **options)

    # Here the judge is rounded too, and in RGB its errors pass from colour to colour.
    for result, want in zip(got, value_and_gradients(reference, x, params), strict=True):
        band = 64 * torch.finfo(dtype).eps * want.abs().max()
        assert ((result - want).abs() <= band).all()
