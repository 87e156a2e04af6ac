"""The CUDA sampler's compiled kernels draw the images that the host draws of the same noise."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.helpers.nvcc_builds import NVCC
from tests.ptx.cuda_player import Built, CudaPlayer, build_sampler
from tests.ptx.memory import Memory
from tests.ptx.sampler_cases import Case, draw, draw_on_host, known_of, make_case

pytestmark = pytest.mark.skipif(NVCC is None, reason="nvcc is not installed")

# Sums run over k in another order, and exp is the device's: a few roundings of what they are made
# of. Images are of the order of 1.
ROUNDING = {False: 2e-6, True: 2e-5}
CASES: dict[str, dict[str, Any]] = {
    "rgb stack gaussian": {
        "filters": 5,
        "channels": 3,
        "conditioning": "stack",
        "likelihood": "gaussian",
        "bf16": True,
        "n": 1,
    },
    "grey completed": {"filters": 4, "bf16": True, "n": 3, "max_slice": 2, "completes": True},
    "rgb discretized in float32": {
        "filters": 3,
        "channels": 3,
        "likelihood": "discretized",
        "atoms": [0, 255, 17],
        "n": 1,
    },
}
FULL_CASES: dict[str, dict[str, Any]] = {
    "grey": {"filters": 4, "bf16": True, "n": 3, "max_slice": 2},
    "grey in float32": {"filters": 4, "n": 1},
    "grey concat": {"filters": 20, "conditioning": "concat", "bf16": True, "n": 1},
    "rgb discretized with atoms": {
        "filters": 3, "channels": 3, "likelihood": "discretized", "atoms": [0, 255, 17],
        "bf16": True, "n": 2,
    },
}  # fmt: skip


@pytest.fixture(scope="module")
def built() -> Built:
    return build_sampler()


def close(drawn: torch.Tensor, expected: torch.Tensor, case: Case) -> bool:
    """Equal to rounding; of a discretized pixel, rounding may reach the next level."""
    off = (drawn - expected).abs()
    if case.likelihood == 1:
        return bool((off > 1e-6).float().mean() < 0.05 and off.max() < 1.1 / 127.5)
    return bool(off.max() < ROUNDING[bool(case.bf16)])


@pytest.mark.parametrize(
    "settings",
    [
        *(pytest.param(case, id=name) for name, case in CASES.items()),
        *(pytest.param(case, id=name, marks=pytest.mark.full) for name, case in FULL_CASES.items()),
    ],
)
def test_images_are_those_of_the_host(settings: dict[str, Any], built: Built) -> None:
    case = make_case(**settings)
    ptx = built.completion if case.completes else built.ptx
    player = CudaPlayer(built, Memory(1 << 23), ptx)
    expected = draw_on_host(player, case)
    assert expected.isfinite().all()
    assert expected.std() > 0.01
    drawn = draw(player, case)
    known, mask = known_of(case)
    if mask is not None:
        kept = ~known.isnan()
        assert kept.any()
        assert torch.equal(drawn[kept], known[kept])
    assert close(drawn, expected, case), (drawn - expected).abs().max()
