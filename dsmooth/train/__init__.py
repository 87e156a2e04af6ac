"""Training of one model: p(x~), p(x | x~) or p(x).

`dsmooth.train(config, ...)` is `dsmooth.train.train`: this package can be called.
"""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any

from .log import Evaluation, NonFiniteLoss
from .loop import TrainResult, train

__all__ = ["Evaluation", "NonFiniteLoss", "TrainResult", "train"]


class _Callable(ModuleType):
    """A module that stands for its function `train`, as `import dsmooth.train` hides that name."""

    __wrapped__ = staticmethod(train)

    def __call__(self, *args: Any, **options: Any) -> TrainResult:
        return train(*args, **options)


sys.modules[__name__].__class__ = _Callable
