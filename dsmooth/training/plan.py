"""The runs of one call of `dsmooth train`, as data."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ..config import Role
from ..data.reading import LABELS_FILE
from ..runs import default_folder

FIRST_NOISY, CLUSTERS = "noisy-unnamed", "clusters"  # folders of a pair by clusters
LABEL_DROPOUT = 0.1  # of the noisy model of such a pair


@dataclass(frozen=True)
class RunPlan:
    """One training run of a command.

    budget_fraction, images_fraction: its part of --budget and of --images. init: the run whose
    weights a new run begins with, with a label_dropout. labels: a file of labels that replace those
    of the images. clusters: how many clusters its trained model makes of the images, into the
    folder next to it.
    """

    folder: Path
    role: Role
    budget_fraction: float = 1.0
    images_fraction: float = 1.0
    init: Path | None = None
    labels: Path | None = None
    label_dropout: float = 0.0
    clusters: int | None = None


def plan_runs(
    role: Role | Literal["pair"],
    folder: Path | None = None,
    clusters: int | None = None,
    *,
    labelled: bool = False,
) -> tuple[RunPlan, ...]:
    """The runs of a command, in order; reads no file.

    folder: of the run, or of a pair; None for the default one. clusters: for a pair, the noisy
    model of which then extends a first noisy model, with the cluster of each image as its label.
    labelled: whether the clusters exist, which the first noisy model is for.
    """
    if role != "pair":
        return (RunPlan(folder or default_folder(role), role),)
    folder = folder or Path("runs") / "pair"
    denoiser = RunPlan(folder / "denoiser", "denoiser", budget_fraction=1 / 2)
    if clusters is None:
        return RunPlan(folder / "noisy", "noisy", budget_fraction=1 / 2), denoiser
    first = RunPlan(folder / FIRST_NOISY, "noisy", 1 / 4, 1 / 2, clusters=clusters)
    noisy = RunPlan(
        folder / "noisy",
        "noisy",
        budget_fraction=1 / 4,
        images_fraction=1 / 2,
        init=first.folder,
        labels=folder / CLUSTERS / LABELS_FILE,
        label_dropout=LABEL_DROPOUT,
    )
    return (noisy, denoiser) if labelled else (first, noisy, denoiser)
