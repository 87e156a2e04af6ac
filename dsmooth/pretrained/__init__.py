"""Trained networks in folders and on the Hugging Face Hub: `load` reads them, `save` writes them.

`importer` reads checkpoints of older PyTorch ports. The folders here are the models that come with
the package: the runs `noisy`, `denoiser` and `plain`, a model card (README.md) and its numbers
(card.json), which `python tools/card.py` of the sources measures again.
"""

from .data import data_of as data_of
from .data import images_for as images_for
from .folders import DEFAULT as DEFAULT
from .folders import find as find
from .folders import packaged as packaged
from .folders import runs_in as runs_in
from .load import Loaded as Loaded
from .load import load as load
from .save import push as push
from .save import save as save
