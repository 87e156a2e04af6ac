"""Autoregressive models of images with distribution smoothing, made fast.

A noisy model learns images with noise, p(x~); a denoiser removes the noise, p(x | x~). The two are
a pair, and drawing from it is two-step sampling (Meng et al., ICLR 2021). Both are PixelCNN++.

    import dsmooth

    pair = dsmooth.load("mnist").pair  # in the package; or a folder
    x = pair.sample(64, seed=0)  # (64, 1, 28, 28) in [-1, 1]
    dsmooth.show(x)  # a picture, which a notebook displays
    upper_halves = dsmooth.sampling.keep_top(0.5, (28, 28))
    completed = pair.sample(64, known=x, mask=upper_halves)
    bound = pair.elbo(x)  # (64,) nats, at most log p(x); the slowest line

A pair of your own images, uint8 (N, C, H, W):

    for role in ("noisy", "denoiser"):
        settings = dsmooth.preset("mnist-quick", role, budget=10)  # minutes
        dsmooth.train(settings, f"runs/{role}", dataset=images)
    pair = dsmooth.load("runs").pair

What is here, each with a help of its own:

    load, save                  networks from folders and the Hugging Face Hub, and into folders
    SmoothedPair                a pair: draw, complete, denoise, measure
    PixelCNNpp, ModelConfig     one network and its settings
    train, TrainConfig, preset  training, its settings, settings by name
    RunFolder                   the folder of a training run
    cluster                     labels that images give themselves
    GaussianSmoothing, LaplaceSmoothing, UniformSmoothing    the noise
    show, to_pil                images as a picture, and as Pillow images
    to_bytes, to_float, round_to_bytes    images in [-1, 1] as bytes, and back
    load_pixelcnnpp             networks of older PyTorch ports
    sampling                    samplers of one network: cached, sequential
    evaluate                    bits/dim, Fréchet distances, probes
    training                    what `train` returns, tells and raises
    pretrained                  what `load` returns, and the Hub
    data                        data sets and folders of images as bytes
    functional                  the ops: shifted convolutions, gated resnet, logistic mixture

The command `dsmooth` does the same from a shell: `dsmooth --help`. docs/guide.md goes through the
tasks, docs/quickstart.ipynb is a first quarter of an hour.

Letters of shapes, here and everywhere: B batch, C image channels, H height, W width, F filters,
R gated resnets per block, K mixture components, P parameters per pixel (3K grey, 10K RGB).
Images are (B, C, H, W) in [-1, 1]; likelihoods are in nats unless "bits/dim" is said.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from . import _door
from ._extension import __version__

if TYPE_CHECKING:
    from . import data as data
    from . import evaluate as evaluate
    from . import functional as functional
    from . import pretrained as pretrained
    from . import sampling as sampling
    from . import training as training
    from .config import ModelConfig as ModelConfig
    from .config import TrainConfig as TrainConfig
    from .data import round_to_bytes as round_to_bytes
    from .data import to_bytes as to_bytes
    from .data import to_float as to_float
    from .data.pictures import show as show
    from .data.pictures import to_pil as to_pil
    from .evaluate import cluster as cluster
    from .nn import PixelCNNpp as PixelCNNpp
    from .pair import SmoothedPair as SmoothedPair
    from .presets import preset as preset
    from .pretrained.importer import load_pixelcnnpp as load_pixelcnnpp
    from .pretrained.load import load as load
    from .pretrained.runs import RunFolder as RunFolder
    from .pretrained.save import save as save
    from .smoothing import GaussianSmoothing as GaussianSmoothing
    from .smoothing import LaplaceSmoothing as LaplaceSmoothing
    from .smoothing import UniformSmoothing as UniformSmoothing
    from .training import train as train

# Resolved on first use, so that `import dsmooth` and `dsmooth --help` do not import torch.
_NAMES = {
    "config": ("ModelConfig", "TrainConfig"),
    "data": ("round_to_bytes", "to_bytes", "to_float"),
    "data.pictures": ("show", "to_pil"),
    "evaluate": ("cluster",),
    "nn": ("PixelCNNpp",),
    "pair": ("SmoothedPair",),
    "presets": ("preset",),
    "pretrained.importer": ("load_pixelcnnpp",),
    "pretrained.load": ("load",),
    "pretrained.runs": ("RunFolder",),
    "pretrained.save": ("save",),
    "smoothing": ("GaussianSmoothing", "LaplaceSmoothing", "UniformSmoothing"),
    "training": ("train",),
}
_HOME = {name: module for module, names in _NAMES.items() for name in names}
_MODULES = ("data", "evaluate", "functional", "pretrained", "sampling", "training")

__all__ = ["__version__", *_HOME, *_MODULES]

_door.pretrained = lambda: import_module(".pretrained", __name__)


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(f".{_HOME[name]}", __name__), name)
    if name in _MODULES:
        return import_module(f".{name}", __name__)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
