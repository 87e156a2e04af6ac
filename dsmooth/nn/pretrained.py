"""`from_pretrained` and `save_pretrained`, as in transformers and diffusers.

They wrap `dsmooth.load` and `dsmooth.save`, which they import when called: this package does not
depend on files.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any, TypedDict

import torch
from torch import nn
from typing_extensions import Self, Unpack


class HubOptions(TypedDict, total=False):
    """Arguments of `huggingface_hub.snapshot_download`."""

    revision: str | None
    cache_dir: str | Path | None
    token: str | bool | None
    local_files_only: bool


class CardOptions(TypedDict, total=False):
    """Arguments of `dsmooth.save`."""

    scores: str | Path | None
    name: str | None
    license: str | None


class UploadOptions(TypedDict, total=False):
    """Arguments of `dsmooth.pretrained.push`."""

    private: bool
    token: str | None
    scores: str | Path | None
    license: str | None
    commit_message: str


class Pretrained(nn.Module):
    """Base of `PixelCNNpp` and `SmoothedPair`."""

    image_size: tuple[int, int] | None = None
    """(H, W) of the training images, the default size for commands. May be None for a network."""
    record: Callable[[], Any] | None = None
    """Function that reads the network's training record, for the model card; None if unknown."""

    @classmethod
    def from_pretrained(
        cls,
        name: str | Path,
        *,
        device: str | torch.device | None = None,
        dtype: torch.dtype | None = None,
        **hub: Unpack[HubOptions],
    ) -> Self:
        """Read a pair or a network by its name or folder, in evaluation mode.

        name, device, dtype, hub (revision, cache_dir, token, local_files_only) and errors: see
        `dsmooth.load`. Raises ValueError for a pair in place of a network, and vice versa.
        """
        loaded = pretrained().load(name, device=device, dtype=dtype, kind=cls, **hub)
        return loaded.of_kind(cls)

    def save_pretrained(self, folder: str | Path, **card: Unpack[CardOptions]) -> None:
        """Write the weights, their settings and a model card.

        card (scores, name, license) and errors: see `dsmooth.save`.
        """
        pretrained().save(self, folder, **card)

    def push_to_hub(self, repo_id: str, **options: Unpack[UploadOptions]) -> str:
        """Write the files of `save_pretrained` to the model `repo_id` on the Hugging Face Hub.

        options (private, token, scores, license, commit_message), result and errors: see
        `dsmooth.pretrained.push`.
        """
        return str(pretrained().push(self, repo_id, **options))


def pretrained() -> Any:
    """Import `dsmooth.pretrained`, which itself imports the networks."""
    return import_module("dsmooth.pretrained")
