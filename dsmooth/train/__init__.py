"""Training of one model: p(x~), p(x | x~) or p(x)."""

from .loop import TrainResult, train
from .readings import NonFiniteLoss

__all__ = ["NonFiniteLoss", "TrainResult", "train"]
