"""Frozen dataclasses that say what a model and a run are."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

Conditioning = Literal["none", "stack", "concat"]
Likelihood = Literal["continuous", "discretized"]


@dataclass(frozen=True)
class ModelConfig:
    """The shape of a PixelCNN++ (math.md section 1).

    The defaults are the paper's MNIST model. Raises ValueError for a field out of range.
    """

    image_channels: int = 1
    """C: 1 (grey) or 3 (RGB)."""
    n_filters: int = 40
    """F: channels of each stream."""
    n_resnet: int = 5
    """R: gated resnets per block."""
    n_mix: int = 10
    """K: logistic components per pixel."""
    dropout: float = 0.5
    """Probability that an element inside a gated resnet is zeroed while training."""
    conditioning: Conditioning = "none"
    """How a context image enters: not at all, stacked on top, or through an encoder."""
    likelihood: Likelihood = "continuous"
    """Density of real-valued pixels, or probability of the 256 levels."""
    context_layers: int = 4
    """Gated resnets in the encoder of conditioning="concat"."""

    def __post_init__(self) -> None:
        if self.image_channels not in (1, 3):
            raise ValueError(f"image_channels must be 1 or 3, got {self.image_channels}")
        for name in ("n_filters", "n_resnet", "n_mix"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.context_layers < 0:
            raise ValueError(f"context_layers must be at least 0, got {self.context_layers}")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout must lie in [0, 1), got {self.dropout}")
        for name, allowed in (("conditioning", Conditioning), ("likelihood", Likelihood)):
            if getattr(self, name) not in get_args(allowed):
                raise ValueError(
                    f"{name} must be one of {', '.join(get_args(allowed))}, "
                    f"got {getattr(self, name)!r}"
                )

    @property
    def n_params(self) -> int:
        """P: mixture parameters per pixel, 3K for grey images and 10K for RGB."""
        return (3 if self.image_channels == 1 else 10) * self.n_mix
