"""Training of one model: p(x~), p(x | x~) or p(x)."""

from __future__ import annotations

import sys

from .log import Evaluation
from .loop import TrainResult, train
from .step import NonFiniteLoss

__all__ = ["Evaluation", "NonFiniteLoss", "TrainResult", "train"]

# `dsmooth.train` is the function. It stands for this package in sys.modules and has its names and
# its path, by which Python finds the modules in here: `import dsmooth.train.step`.
# To mypy a value of sys.modules is a module.
vars(train).update(vars(sys.modules[__name__]))
sys.modules[__name__] = train  # type: ignore[assignment]
