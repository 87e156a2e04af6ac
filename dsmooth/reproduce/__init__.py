"""The whole paper in one folder: plan, stages, results, and the call that carries them out."""

from .plan import BUDGET_MINUTES, Given, Plan, plan_from_preset
from .stages import STAGES, Sizes
from .whole import reproduce

__all__ = [
    "BUDGET_MINUTES",
    "STAGES",
    "Given",
    "Plan",
    "Sizes",
    "plan_from_preset",
    "reproduce",
]
