"""How well the tilings of a training step fit: tools/predict_training_step.py, held to launches."""

from __future__ import annotations

import math
import runpy
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import pytest

pytest.importorskip("triton", reason="Triton is not installed: its launchers cannot be imported")

from dsmooth.kernels.geometry import Taps
from tests.helpers.aot_launches import Block, is_matmul

SCRIPT = Path(__file__).resolve().parents[1] / "tools" / "predict_training_step.py"


@pytest.fixture(scope="module")
def tool() -> SimpleNamespace:
    return SimpleNamespace(**runpy.run_path(str(SCRIPT)))


# 40 filters fill a tile of 48, and runs of 80 and 40 numbers steps of 64.
@pytest.mark.parametrize(("size", "useful"), [((160, 32, 64), 0.88), ((40, 28, 80), 0.73)])
def test_little_of_the_work_is_padding(
    tool: SimpleNamespace, size: tuple[int, int, int], useful: float
) -> None:
    found = list(tool.launches(*size))
    assert tool.useful_share(found) >= useful
    assert tool.filled_share(found) >= 0.85


@pytest.mark.parametrize(("filters", "side", "batch"), [(160, 32, 64), (40, 28, 80), (40, 8, 2)])
def test_the_tool_counts_what_is_launched(
    tool: SimpleNamespace, filters: int, side: int, batch: int
) -> None:
    """Programs of every matmul of the first block with a skip, 2x2, and its steps."""
    predicted = Counter(
        (work.programs, work.steps)
        for work in tool.block(filters, batch, side, Taps(2, 2, 1, 1), 1)
        if work.tiling is not None
    )
    launches = Block(filters, (2, 2), skips=1, size=(batch, side, side)).launches(90)
    recorded = Counter(
        (math.prod(launch.grid), launch.arguments["steps"])
        for launch in launches
        if is_matmul(launch)
    )
    assert predicted == recorded
