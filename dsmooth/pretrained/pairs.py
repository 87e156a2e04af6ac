"""Pairs in files: a folder of settings, weights and a model card, here or on the Hub."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, cast

import torch
from torch import nn

from .._version import __version__
from ..config import Role, SmoothingKind
from ..files import read_json, save_weights, write_atomically, write_json
from ..nn import PixelCNNpp
from ..nn.weights import weights_digest
from ..runs import Origin
from ..smoothing import Smoothing, make_smoothing
from .card import MARK, render_card
from .resolver import (
    CARD_FILE,
    CONFIG_FILE,
    DENOISER_FILE,
    HUB_FILES,
    HUB_ID,
    NOISY_FILE,
    Origins,
    PairSettings,
    SavedNetwork,
    SmoothingSettings,
    first_line,
    huggingface_hub,
    resolve,
)

if TYPE_CHECKING:
    from typing_extensions import Self


class PairInFiles(nn.Module):
    """Reading and writing of a pair, whose class is made of its two models and the smoothing."""

    noisy: PixelCNNpp
    denoiser: PixelCNNpp
    smoothing: Smoothing
    image_size: tuple[int, int]
    origin: Mapping[Role, Origin]
    """Origin of the weights, as far as it is known; shown by the model card."""

    def save_pretrained(
        self,
        folder: str | Path,
        *,
        scores: str | Path | None = None,
        name: str | None = None,
        license: str | None = None,
    ) -> None:
        """Write config.json, noisy.safetensors, denoiser.safetensors and the card README.md.

        The card says what the pair is and, where it was made of run folders, how it was trained.
        scores: the file that `dsmooth evaluate bpd` wrote for it, whose table the card shows. name:
        by which the card's example reads the pair, by default the folder's. license: of the
        weights, by its name on the Hub, such as "mit". A README.md that dsmooth did not write
        stays.
        Raises ValueError for scores of another pair.
        """
        kind = SmoothingSettings(cast(SmoothingKind, self.smoothing.kind), self.smoothing.scale)
        networks: dict[Role, PixelCNNpp] = {"noisy": self.noisy, "denoiser": self.denoiser}
        digests = {role: weights_digest(network) for role, network in networks.items()}
        configs = self.noisy.config, self.denoiser.config
        settings = asdict(PairSettings(*configs, kind, self.image_size, dict(self.origin), digests))
        measured = None if scores is None else read_json(Path(scores))
        pair = {} if measured is None else measured.get("pair")
        if measured is not None and (
            not isinstance(pair, dict) or pair.get("weights_sha256") != [*digests.values()]
        ):
            raise ValueError(f"{scores} does not hold the scores of these weights")
        card = render_card(settings, networks, name or str(folder), measured, license)
        folder = Path(folder)
        config = folder / CONFIG_FILE
        if config.exists() and not {"noisy", "denoiser"} <= read_json(config).keys():
            raise ValueError(
                f"{config} is not that of a saved pair, and stays: choose another folder"
            )
        save_weights(self.noisy, folder / NOISY_FILE)
        save_weights(self.denoiser, folder / DENOISER_FILE)
        write_json(config, {"dsmooth": __version__, **settings})
        path = folder / CARD_FILE
        if not path.exists() or MARK in path.read_text(errors="replace"):
            write_atomically(path, card.encode())

    def push_to_hub(
        self,
        repo_id: str,
        *,
        private: bool = False,
        token: str | None = None,
        scores: str | Path | None = None,
        license: str | None = None,
        commit_message: str = "Upload a smoothed pair",
    ) -> str:
        """Write what `save_pretrained` writes into the model `repo_id` of the Hugging Face Hub.

        repo_id: "owner/name", made if need be, for you alone if `private`. token: None for the one
        of `hf auth login`. scores, license: as in `save_pretrained`. Returns the commit's address.
        Raises ModuleNotFoundError without the extra "hub"; OSError, with the reason and what to do,
        if the Hub does not take it; ValueError for a repo_id or scores that do not fit.
        """
        if HUB_ID.fullmatch(repo_id) is None:
            raise ValueError(f'repo_id must be "owner/name", got {repo_id!r}')
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

    @classmethod
    def from_runs(cls, noisy: str | Path, denoiser: str | Path) -> Self:
        """Make a pair of two run folders of `dsmooth train`.

        Raises FileNotFoundError or ValueError for folders that are not runs, have other roles, or
        were trained for different smoothing or image sizes.
        """
        return cls.of_networks([*resolve(noisy), *resolve(denoiser)])

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
        """Read a pair by its name or folder; both models in evaluation mode.

        name: "mnist", the pair that comes with the package; a folder that `save_pretrained` wrote;
        one with the runs `noisy` and `denoiser` in it, such as that of `dsmooth reproduce`; or, by
        the extra "hub", the "owner/name" of such a folder on the Hugging Face Hub. device, dtype:
        of the models, by default the CPU and float32. revision, cache_dir, token, local_files_only:
        of the Hub, as `huggingface_hub.snapshot_download` takes them.
        Raises FileNotFoundError or ValueError, naming the file, for anything else;
        ModuleNotFoundError without the extra, and OSError if the Hub does not give the pair.
        """
        hub = {"cache_dir": cache_dir, "token": token, "local_files_only": local_files_only}
        pair = cls.of_networks(resolve(name, revision=revision, **hub))
        return pair.to(device=device, dtype=dtype)

    @classmethod
    def of_networks(cls, saved: Sequence[SavedNetwork]) -> Self:
        """Read a noisy model and its denoiser, in this order; raises as `from_runs` does."""
        found = ", ".join(f"{network.role} ({network.folder})" for network in saved)
        if [network.role for network in saved] != ["noisy", "denoiser"]:
            raise ValueError(
                f"a pair needs the run of a noisy model and the run of a denoiser, got {found}"
            )
        noisy, denoiser = saved
        one, two = (f"{n.smoothing} noise of scale {n.scale}" for n in saved)
        if one != two or noisy.image_size != denoiser.image_size:
            raise ValueError(
                f"the runs do not fit together: {one} at {noisy.image_size} and {two} at "
                f"{denoiser.image_size}"
            )
        networks = noisy.load(), denoiser.load()
        try:
            smoothing = make_smoothing(noisy.smoothing, noisy.scale)
            pair = cls(*networks, smoothing, noisy.image_size).eval()
        except ValueError as error:
            raise ValueError(f"{found} are no pair: {error}") from None
        pair.origin = Origins(saved)
        return pair
