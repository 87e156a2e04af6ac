"""The paper's experiments in one folder: plan, stages, results, and the pipeline that runs them."""

from .pipeline import reproduce
from .plan import BUDGET_MINUTES, PretrainedPlan, TrainingPlan, plan_from_preset
from .stages import STAGES, Sizes

__all__ = [
    "BUDGET_MINUTES",
    "STAGES",
    "PretrainedPlan",
    "Sizes",
    "TrainingPlan",
    "plan_from_preset",
    "reproduce",
]
