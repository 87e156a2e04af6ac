"""The runs of one call of `dsmooth train`, as data."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ..config import Role
from ..runs import default_folder


@dataclass(frozen=True)
class RunPlan:
    """One training run of a command, with its part of --budget."""

    folder: Path
    role: Role
    budget_fraction: float = 1.0


def plan_runs(role: Role | Literal["pair"], folder: Path | None = None) -> tuple[RunPlan, ...]:
    """The runs of a command, in order; reads no file.

    folder: of the run, or of a pair; None for the default one.
    """
    if role != "pair":
        return (RunPlan(folder or default_folder(role), role),)
    folder = folder or Path("runs") / "pair"
    return (
        RunPlan(folder / "noisy", "noisy", budget_fraction=1 / 2),
        RunPlan(folder / "denoiser", "denoiser", budget_fraction=1 / 2),
    )
