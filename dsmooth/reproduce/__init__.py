"""The paper's experiments in one folder: stages, facts, and the pipeline that runs them."""

from .pipeline import BUDGET_MINUTES, PretrainedPlan, TrainingPlan, plan_from_preset, reproduce
from .stages import Sizes

__all__ = [
    "BUDGET_MINUTES",
    "PretrainedPlan",
    "Sizes",
    "TrainingPlan",
    "plan_from_preset",
    "reproduce",
]
