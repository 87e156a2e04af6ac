"""The models of a reproduction: runs to train, or models that are trained already."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

from ..config import Role, TrainConfig
from ..data import ImageDataset
from ..evaluate.probe import check_images
from ..evaluate.sources import choose_data
from ..models import Models
from ..presets import preset

# Each model's part of the training time; the pair matters most.
SHARES: dict[Role, float] = {"noisy": 0.4, "denoiser": 0.4, "plain": 0.2}
# The least training between two scores on held-out images.
EVALUATION_MINUTES = 0.4
BUDGET_MINUTES = 8.0


@dataclass(frozen=True)
class TrainingPlan:
    """The runs that a reproduction trains, one after the other.

    configs: one noisy model and its denoiser; a plain one may follow. name: the source of the
    settings, for the report. budget: minutes of training in all, or None if the configs say how
    many images.
    """

    name: str
    configs: tuple[TrainConfig, ...]
    budget: float | None = None

    @property
    def seed(self) -> int:
        """The seed of weights, noise and samples."""
        return self.configs[0].seed

    def description(self) -> dict[str, Any]:
        """All that decides the results, as JSON."""
        runs = {config.role: asdict(config) for config in self.configs}
        for settings in runs.values() if self.budget else ():
            del settings["budget"], settings["evaluations"]  # parts of the budget in all
        return {"name": self.name, "budget": self.budget, "runs": runs}


def plan_from_preset(
    name: str,
    *,
    budget: float = BUDGET_MINUTES,
    data_dir: str | None = None,
    download: bool = False,
    seed: int = 0,
) -> TrainingPlan:
    """The pair, then the plain baseline, in `budget` minutes together.

    Raises ValueError for an unknown preset or a budget that is not positive.
    """
    if not 0 < budget < math.inf:
        raise ValueError(f"budget must be a positive number of minutes, got {budget}")
    configs = []
    for role, share in SHARES.items():
        settings, minutes = preset(name, role), share * budget
        config = replace(
            settings,
            images=None,
            budget=minutes,
            data_dir=data_dir,
            download=download,
            seed=seed,
            # A short run must not spend its time on being scored.
            evaluations=max(1, min(settings.evaluations, int(minutes / EVALUATION_MINUTES))),
        )
        configs.append(config)
    return TrainingPlan(name, tuple(configs), budget)


@dataclass(frozen=True)
class PretrainedPlan:
    """A reproduction with models that are trained already.

    models: as of `load_models`, a pair and perhaps a plain model. data, data_dir: which images; by
    default those of the runs, and the embedded MNIST subset for a saved pair. name: of the models,
    for the report.
    """

    models: tuple[Path, ...]
    data: str | None = None
    data_dir: str | None = None
    image_size: int | None = None
    seed: int = 0
    name: str = "models that were given"
    budget: ClassVar[None] = None

    def load_data(self, models: Models) -> tuple[ImageDataset, ImageDataset]:
        """Training and test images. Raises ValueError for those of another shape."""
        choice = choose_data(models, self.data, self.data_dir, self.image_size)
        train_set, test_set = choice.load("train"), choice.load("test")
        for data in (train_set, test_set):
            check_images(models.pair, data)
        return train_set, test_set

    def description(self, models: Models, test_set: ImageDataset) -> dict[str, Any]:
        """All that decides the results, as JSON."""
        return {
            "name": self.name,
            "seed": self.seed,
            "data": test_set.source,
            "weights_sha256": models.digests(),
        }
