"""Short forms of `dsmooth.load` and `dsmooth.save`, as users of transformers and diffusers expect.

Networks know no files: these methods find the functions by name when they are called.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict

import torch
from torch import nn

if TYPE_CHECKING:
    from typing_extensions import Self, Unpack


class HubOptions(TypedDict, total=False):
    """Of the Hugging Face Hub, as `huggingface_hub.snapshot_download` takes them."""

    revision: str | None
    cache_dir: str | Path | None
    token: str | bool | None
    local_files_only: bool


class Pretrained(nn.Module):
    """Base of `PixelCNNpp` and `SmoothedPair`."""

    image_size: tuple[int, int] | None = None
    """(H, W) of the images that it learned; commands draw such images. A network's may be None."""
    record: Callable[[], Any] | None = None
    """Reads the training record of a network's weights, for the model card; None if unknown."""

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

        name, device, dtype, hub (revision, cache_dir, token, local_files_only) and errors: as of
        `dsmooth.load`. Raises ValueError for a pair in place of a network, and the other way.
        """
        loaded = pretrained().load(name, device=device, dtype=dtype, kind=cls, **hub)
        return loaded.of_kind(cls)

    def save_pretrained(
        self,
        folder: str | Path,
        *,
        scores: str | Path | None = None,
        name: str | None = None,
        license: str | None = None,
    ) -> None:
        """Write the weights, their settings and a model card; arguments and errors as of
        `dsmooth.save`."""
        pretrained().save(self, folder, scores=scores, name=name, license=license)

    def push_to_hub(
        self,
        repo_id: str,
        *,
        private: bool = False,
        token: str | None = None,
        scores: str | Path | None = None,
        license: str | None = None,
        commit_message: str = "Upload weights of dsmooth",
    ) -> str:
        """Write what `save_pretrained` writes into the model `repo_id` of the Hugging Face Hub.

        Arguments, result and errors as of `dsmooth.pretrained.push`.
        """
        options = {"private": private, "token": token, "scores": scores, "license": license}
        return str(pretrained().push(self, repo_id, **options, commit_message=commit_message))


def pretrained() -> Any:
    """`dsmooth.pretrained`, by name: it imports the networks that it reads and writes."""
    return import_module("dsmooth.pretrained")
