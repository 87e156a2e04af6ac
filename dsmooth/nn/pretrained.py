"""Methods of networks and pairs that read and write files; `dsmooth.pretrained` does it."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import nn

if TYPE_CHECKING:
    from typing_extensions import Self

    from ..runs import Origin


class Pretrained(nn.Module):
    """Base of `PixelCNNpp` and `SmoothedPair`."""

    image_size: tuple[int, int] | None = None
    """(H, W) of the images that it learned; commands draw such images. A network's may be None."""
    origin: Origin | None = None
    """Origin of a network's weights, for the model card, as far as it is known."""

    @classmethod
    def from_pretrained(
        cls,
        name: str | Path,
        *,
        device: str | torch.device | None = None,
        dtype: torch.dtype | None = None,
        revision: str | None = None,
        cache_dir: str | Path | None = None,
        token: str | bool | None = None,
        local_files_only: bool = False,
    ) -> Self:
        """Read a pair or a network by its name or folder, in evaluation mode.

        name: of those that come with the package, the pairs "mnist" and "mnist-classes" and the
        network "mnist-plain"; a folder that `save_pretrained` wrote; for a network, the folder of a
        run; for a pair, a folder with the runs `noisy` and `denoiser` in it, such as that of
        `dsmooth reproduce`; or, by the extra "hub", the "owner/name" of such a folder on the
        Hugging Face Hub. device, dtype: by default the CPU and float32. revision, cache_dir, token,
        local_files_only: of the Hub, as `huggingface_hub.snapshot_download` takes them.

        Raises FileNotFoundError or ValueError, naming the file, for anything else;
        ModuleNotFoundError without the extra, and OSError if the Hub does not give the folder.
        """
        from ..pretrained import find, read

        if not isinstance(dtype, torch.dtype | None):
            raise TypeError(f"dtype must be a torch.dtype, such as torch.bfloat16, got {dtype!r}")
        folder = find(
            name,
            revision=revision,
            cache_dir=cache_dir,
            token=token,
            local_files_only=local_files_only,
        )
        return read(cls, folder).to(device=device, dtype=dtype)

    def save_pretrained(
        self,
        folder: str | Path,
        *,
        scores: str | Path | None = None,
        name: str | None = None,
        license: str | None = None,
    ) -> None:
        """Write model.safetensors, its settings as config.json, and the model card README.md.

        One rename of the weights' file, which has the settings in its metadata, saves them. Files
        whose config.json was edited are not read. The card says how networks of run folders were
        trained. scores: the file that `dsmooth evaluate bpd` wrote for them, whose table the card
        shows. name: in the card's example, by default the folder's. license: of the weights, by its
        name on the Hub, such as "mit". A README.md that dsmooth did not write stays.

        Raises ValueError for scores of other weights, and for a folder that is a file or holds
        settings of something else.
        """
        from ..pretrained import writer

        writer.save(self, Path(folder), scores, name, license)

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

        repo_id: "owner/name", made if need be, for you alone if `private`. token: None for the one
        of `hf auth login`. scores, license: as in `save_pretrained`. Returns the commit's address.
        Raises ModuleNotFoundError without the extra "hub", OSError if the Hub does not take it, and
        ValueError for a repo_id or scores that do not fit.
        """
        from ..pretrained import HUB_FILES, HUB_ID, first_line, huggingface_hub

        if HUB_ID.fullmatch(repo_id) is None:
            raise ValueError(f'`repo_id` must be "owner/name", got {repo_id!r}')
        api = huggingface_hub(f"to write {repo_id} on the Hugging Face Hub").HfApi(token=token)
        with tempfile.TemporaryDirectory() as folder:
            self.save_pretrained(folder, scores=scores, name=repo_id, license=license)
            try:
                api.create_repo(repo_id, private=private, exist_ok=True)
                commit = api.upload_folder(
                    repo_id=repo_id,
                    folder_path=folder,
                    allow_patterns=HUB_FILES,
                    commit_message=commit_message,
                )
            except Exception as error:
                raise OSError(
                    f"could not write {repo_id} on the Hugging Face Hub: {first_line(error)}. "
                    "Writing needs a network and a token: `hf auth login`, or token="
                ) from error
        return str(commit.commit_url)
