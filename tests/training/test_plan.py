"""The settings of the runs of `dsmooth train`."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from dsmooth.commands.train import next_step
from dsmooth.config import Role
from dsmooth.presets import FINE_TUNING, preset
from dsmooth.runs import RunFolder
from dsmooth.training import resolve
from dsmooth.training.plan import RunPlan
from dsmooth.training.step import scheduled
from tests.helpers.command_runs import settings_of
from tests.helpers.networks import numbered
from tests.helpers.tiny_runs import ROLES


@pytest.mark.quick
@pytest.mark.parametrize(
    ("words", "factors"),
    [
        ("pair nowhere", [1.0, 1.0]),
        ("pair nowhere --init mnist", [FINE_TUNING, FINE_TUNING]),
        ("pair nowhere --init mnist --learning-rate 0.032", [1.0, 1.0]),
    ],
)
def test_a_run_from_given_weights_has_smaller_rates(
    capsys: pytest.CaptureFixture[str], words: str, factors: list[float]
) -> None:
    """Unless it is given rates: in the command, and in Python."""
    printed = settings_of(capsys, f"{words} --images 9")
    assert [planned["settings"]["rate_factor"] for planned in printed.values()] == factors
    assert preset("mnist", "noisy", init="mnist").rate_factor == FINE_TUNING
    assert preset("mnist", "noisy", init="mnist", kernel_rate=0.02).rate_factor == 1
    config = preset("mnist", "noisy", images=9)
    slow = replace(config, rate_factor=FINE_TUNING)
    assert scheduled(2.0, slow, 4, 1) == pytest.approx(FINE_TUNING * scheduled(2.0, config, 4, 1))


@pytest.mark.parametrize("role", ROLES)
@pytest.mark.parametrize("n_classes", [0, 2])
def test_the_next_command_draws_each_class_of_a_model(tmp_path, role: Role, n_classes: int) -> None:
    """Where a command draws."""
    model = replace(preset("mnist-quick", role).model, classes=numbered(n_classes))
    RunFolder(tmp_path).write_config(preset("mnist-quick", role, model=model), (8, 8))
    advice = next_step([RunPlan(tmp_path, role)])
    assert str(tmp_path) in advice
    assert ("--label each" in advice) == (n_classes > 0)


def test_settings_are_completed_in_one_place() -> None:
    """No other module of training replaces a setting: they are what `resolve` returned, but for
    the end of a run with a budget."""
    package = Path(resolve.__file__).parent
    for path in package.glob("*.py"):
        if path.stem not in ("resolve", "budget"):
            assert "replace(" not in path.read_text().replace("os.replace(", "")
