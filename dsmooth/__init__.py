"""dsmooth: autoregressive image modelling with distribution smoothing.

A PixelCNN++ learns the data plus noise, p(x~); a second one removes the noise, p(x | x~); sampling
is two-step (Meng et al., ICLR 2021).

Letters of shapes, here and everywhere: B batch, C image channels, H height, W width, F filters,
R gated resnets per block, K mixture components, P parameters per pixel (3K grey, 10K RGB).
Images are (B, C, H, W) in [-1, 1]; likelihoods are in nats unless "bits/dim" is said.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from ._version import __version__

if TYPE_CHECKING:
    from . import data, evaluate, functional, sampling
    from .config import ModelConfig, TrainConfig
    from .nn import PixelCNNpp
    from .nn.convert import load_pixelcnnpp
    from .pair import SmoothedPair
    from .presets import preset
    from .runs import RunFolder
    from .smoothing import GaussianSmoothing, LaplaceSmoothing, UniformSmoothing
    from .train import train

# Resolved on first use, so that `import dsmooth` and `dsmooth --help` do not import torch.
_HOME = {
    "GaussianSmoothing": "smoothing",
    "LaplaceSmoothing": "smoothing",
    "ModelConfig": "config",
    "PixelCNNpp": "nn",
    "RunFolder": "runs",
    "SmoothedPair": "pair",
    "TrainConfig": "config",
    "UniformSmoothing": "smoothing",
    "load_pixelcnnpp": "nn.convert",
    "preset": "presets",
}
_MODULES = ("data", "evaluate", "functional", "sampling", "train")

__all__ = [
    "GaussianSmoothing",
    "LaplaceSmoothing",
    "ModelConfig",
    "PixelCNNpp",
    "RunFolder",
    "SmoothedPair",
    "TrainConfig",
    "UniformSmoothing",
    "__version__",
    "data",
    "evaluate",
    "functional",
    "load_pixelcnnpp",
    "preset",
    "sampling",
    "train",
]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(f".{_HOME[name]}", __name__), name)
    if name in _MODULES:
        return import_module(f".{name}", __name__)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
