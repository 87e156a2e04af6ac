"""Trained networks by name: found, read and written.

`resolver` finds and reads what a name, a folder or an id of the Hugging Face Hub stands for;
`writer` writes pairs and networks with their model cards; `convert` reads checkpoints of older
PyTorch ports.

The folders here are the models that come with the package: the runs `noisy`, `denoiser` and
`plain`, a model card (README.md) and its numbers (card.json), which `python tools/card.py` of the
sources measures again.
"""

from .resolver import DEFAULT, TITLE, SavedNetwork, find, is_model, packaged, resolve

__all__ = ["DEFAULT", "TITLE", "SavedNetwork", "find", "is_model", "packaged", "resolve"]
