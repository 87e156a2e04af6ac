"""Trained networks in folders and on the Hugging Face Hub: `load` reads them, `save` writes them.

`importer` reads checkpoints of older PyTorch ports. The folders here are the models that come with
the package: the runs `noisy`, `denoiser` and `plain`, a model card (README.md) and its numbers
(card.json), which `python tools/card.py` of the sources measures again.
"""

from .data import data_of, images_for
from .folders import DEFAULT, find, is_model, packaged
from .load import Loaded, load
from .save import push, save

__all__ = [
    "DEFAULT",
    "Loaded",
    "data_of",
    "find",
    "images_for",
    "is_model",
    "load",
    "packaged",
    "push",
    "save",
]
