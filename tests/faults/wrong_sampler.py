"""The native sampler, for wrong calls: an exception, or the images of the right call."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dsmooth import ModelConfig, PixelCNNpp
from dsmooth._extension import extension
from dsmooth.sampling.cached import native_settings

N, SIZE, MARGIN = 3, 8, 1024
SHAPE = (N, 1, SIZE, SIZE)
RIGHT: dict[str, Any] = {
    "seed": 5,
    "first_index": 2,
    "temperature": 1.0,
    "threads": 2,
    "slice": 0,
    "progress": None,
}
WRONG: dict[str, list[Any]] = {
    "out": [
        *(None, 3, "x", [], np.zeros(SHAPE), np.zeros(SHAPE, np.int32)),
        *(np.zeros(shape, np.float32) for shape in ((), (0,), (4,), (0, 1, 8, 8), (3, 1, 8))),
        *(np.zeros(shape, np.float32) for shape in ((3, 2, 8, 8), (3, 1, 6, 8), (3, 1, 8, 0))),
        *(np.zeros(shape, np.float32) for shape in ((3, 1, 8, 8, 1), (3, 3, 8, 8))),
        np.zeros((N, 1, SIZE, 2 * SIZE), np.float32)[..., ::2],
        np.zeros((SIZE, SIZE, 1, N), np.float32).T,
    ],
    "context": [
        *(None, 3, "x", [[1.0]], np.zeros(SHAPE), np.zeros(SHAPE, np.float16)),
        *(np.zeros(shape, np.float32) for shape in ((), (1,), (1, 1, 8, 8), (3, 1, 4, 8), SHAPE)),
        np.zeros((N, 1, SIZE, 2 * SIZE), np.float32)[..., ::2],
        np.full(SHAPE, np.nan, np.float32),
    ],
    "seed": [-1, 2**64, 1.5, "x", None, 2**64 - 1],
    "first_index": [-1, 2**64, 0.5, None, 2**63],
    "temperature": [0.0, -1.0, float("nan"), float("inf"), "x", None, 1e-30, 1e30],
    "threads": [0, -1, 2**31, 2**40, 1.5, None, 64],
    "slice": [-1, 2**31, 1.5, None, 1, 1000],
    "progress": [3, "x", lambda: None],
}


def make_sampler(conditioning: str, dtype: torch.dtype) -> Any:
    torch.manual_seed(0)
    likelihood = {"likelihood": "discretized", "atoms": (0, 255)}
    model = PixelCNNpp(
        ModelConfig(
            n_filters=3, n_resnet=1, n_mix=2, dropout=0.0, conditioning=conditioning, **likelihood
        )
    )
    arguments = native_settings(model, bf16=dtype == torch.bfloat16)
    return extension().CpuSampler(**arguments, instruction_set="auto")


def guarded(shape: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """An array between canaries, and the whole of it."""
    whole = np.full(int(np.prod(shape)) + 2 * MARGIN, 7, np.float32)
    return whole[MARGIN:-MARGIN].reshape(shape), whole


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("conditioning", ["none", "stack", "concat"])
def test_a_wrong_call_raises_or_draws_rightly(conditioning: str, dtype: torch.dtype) -> None:
    sampler = make_sampler(conditioning, dtype)
    context = None if conditioning == "none" else np.linspace(-1, 1, 192).reshape(SHAPE)
    right = {**RIGHT, "context": None if context is None else context.astype(np.float32)}
    expected, _ = guarded(SHAPE)
    sampler.sample(out=expected, **right)
    calls = refused = 0

    names = st.sets(st.sampled_from(sorted(WRONG)), min_size=1, max_size=2)

    @settings(max_examples=250, database=None, derandomize=True, deadline=None)
    @given(st.data(), names)
    def law(data: st.DataObject, wrong: set[str]) -> None:
        nonlocal calls, refused
        out, whole = guarded(SHAPE)
        arguments = {"out": out, **right}
        for name in sorted(wrong):
            arguments[name] = data.draw(st.sampled_from(WRONG[name]), name)
        calls += 1
        try:
            sampler.sample(**arguments)
        except (TypeError, ValueError, RuntimeError, MemoryError):
            refused += 1
        else:
            decisive = wrong & {"out", "context", "seed", "first_index", "temperature"}
            if not decisive:
                np.testing.assert_array_equal(out, expected)
        assert (whole[:MARGIN] == 7).all()
        assert (whole[-MARGIN:] == 7).all()

    law()
    print(f"_C.CpuSampler.sample, {conditioning}, {dtype}: {calls} calls, {refused} refused")
    assert refused > 50
