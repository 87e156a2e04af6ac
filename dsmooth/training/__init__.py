"""Training of one model: p(x~), p(x | x~) or p(x)."""

from .log import Evaluation, tensorboard
from .loop import TrainResult, train
from .optimizers import Muon
from .step import NonFiniteLoss

__all__ = ["Evaluation", "Muon", "NonFiniteLoss", "TrainResult", "tensorboard", "train"]
