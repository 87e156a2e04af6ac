"""How well the tilings of a training step fit: tools/predict_training_step.py, held to launches."""

from __future__ import annotations

import math
import runpy
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("triton", reason="Triton is not installed: its launchers cannot be imported")

from dsmooth.kernels.geometry import Taps
from tests.helpers.aot_launches import Block, is_matmul
from tests.helpers.triton_tools import Launch

SCRIPT = Path(__file__).resolve().parents[1] / "tools" / "predict_training_step.py"


@pytest.fixture(scope="module")
def tool() -> SimpleNamespace:
    return SimpleNamespace(**runpy.run_path(str(SCRIPT)))


@pytest.mark.parametrize("keep", [False, True])
@pytest.mark.parametrize(
    ("size", "useful", "seconds"), [((160, 32, 64), 0.94, 24e-3), ((40, 28, 80), 0.88, 6e-3)]
)
def test_little_of_the_work_is_padding(
    tool: SimpleNamespace, size: tuple[int, int, int], useful: float, seconds: float, keep: bool
) -> None:
    """And few processors wait; by the tool's rates, a step takes no longer than it should."""
    found = list(tool.launches(*size, keep=keep))
    assert tool.useful_share(found) >= useful
    assert tool.filled_share(found) >= 0.9
    assert sum(launch.seconds for launch in found) <= seconds


@pytest.mark.parametrize(("filters", "side", "batch"), [(160, 32, 64), (40, 28, 80), (40, 8, 2)])
def test_the_tool_counts_what_is_launched(
    tool: SimpleNamespace, filters: int, side: int, batch: int
) -> None:
    """Every launch of a block with a skip, 2x2; programs of every matmul, and their steps."""
    for keep in (False, True):
        predicted = list(tool.block(filters, batch, side, Taps(2, 2, 1, 1), 1, keep))
        block = Block(filters, (2, 2), skips=1, size=(batch, side, side), keep=keep)
        recorded = block.launches(90)
        assert len(predicted) == len(recorded)
        assert Counter(
            (sum(part.programs for part in launch.matmuls), *(p.steps for p in launch.matmuls))
            for launch in predicted
            if launch.matmuls
        ) == Counter(
            (programs_of(launch), *steps_of(launch.arguments))
            for launch in recorded
            if is_matmul(launch)
        )


def programs_of(launch: Launch) -> int:
    """Those that multiply."""
    return math.prod(launch.grid) - int(launch.arguments.get("first_program", 0))


def steps_of(arguments: dict[str, Any]) -> list[int]:
    """Of each matmul of a launch."""
    names = ("steps", "point_steps", "hidden_steps", "out_steps")
    return [arguments[name] for name in names if name in arguments]
