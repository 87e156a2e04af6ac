"""Training of one model: p(x~), p(x | x~) or p(x)."""

from .log import Evaluation, tensorboard
from .loop import TrainResult, train
from .step import NonFiniteLoss

__all__ = ["Evaluation", "NonFiniteLoss", "TrainResult", "tensorboard", "train"]
