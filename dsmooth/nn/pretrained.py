"""`from_pretrained` and `save_pretrained`, as in transformers and diffusers.

They are short for `dsmooth.load` and `dsmooth.save`, which the package hands down: networks do not
import them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn
from typing_extensions import Self

from .. import _door
from ..config import TrainingRecord


class Pretrained(nn.Module):
    """Base of `PixelCNNpp` and `SmoothedPair`."""

    image_size: tuple[int, int] | None = None
    """(H, W) of the training images, the default size for commands. May be None for a network."""
    record: TrainingRecord | None = None
    """The training that the weights of a network come from, if it is known."""

    @classmethod
    def from_pretrained(cls, name: str | Path, **options: Any) -> Self:
        """`dsmooth.load(name, **options).model`; options: device, dtype, and those of the Hub.

        Raises ValueError for a pair in place of a network, and vice versa.
        """
        model = _door.pretrained().load(name, kind=cls, **options).model
        if not isinstance(model, cls):
            found = type(model).__name__
            raise ValueError(f"{name} holds a {found}, which dsmooth.{found}.from_pretrained reads")
        return model

    def save_pretrained(self, folder: str | Path, **card: Any) -> None:
        """`dsmooth.save(self, folder)`; card: scores, name, license."""
        _door.pretrained().save(self, folder, **card)

    def push_to_hub(self, repo_id: str, **options: Any) -> str:
        """`dsmooth.pretrained.push(self, repo_id)`; returns the address of the commit.

        options: private, token, scores, license, commit_message.
        """
        return str(_door.pretrained().push(self, repo_id, **options))
