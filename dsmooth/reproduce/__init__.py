"""The paper's experiments in one folder: stages that remember their results, and a report."""

from .results import report
from .stages import Stages

__all__ = ["Stages", "report"]
