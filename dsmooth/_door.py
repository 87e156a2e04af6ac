"""What networks call above them: the package hands it down when it is imported."""

from collections.abc import Callable
from types import ModuleType

pretrained: Callable[[], ModuleType]  # imports dsmooth.pretrained
