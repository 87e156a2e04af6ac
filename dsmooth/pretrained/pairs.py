"""Pairs in files: a folder of settings, weights and a model card, here or on the Hub.

The functions that begin with a pair, or with its class, are methods of `SmoothedPair`, which stands
on a higher floor.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast

import torch

from .._version import __version__
from ..config import OWN, Role, SmoothingKind
from ..data import DATASETS
from ..files import (
    json_text,
    lock_folder,
    read_json,
    weight_bytes,
    write_together,
)
from ..nn import PixelCNNpp
from ..nn.weights import weights_digest
from ..smoothing import SMOOTHINGS
from ..tables import COMPARABLE, bits_table, plain_text, shown
from .resolver import (
    CARD_FILE,
    CONFIG_FILE,
    HUB_FILES,
    HUB_ID,
    WEIGHT_FILES,
    PairSettings,
    SavedNetwork,
    SmoothingSettings,
    arriving_weights,
    first_line,
    huggingface_hub,
    resolve,
)

# A card with this line is overwritten with the pair; one without it was written by a person.
MARK = "<!-- Written by dsmooth. Without this line the file is yours, and stays. -->"


def save_pretrained(
    pair: Any,
    folder: str | Path,
    *,
    scores: str | Path | None = None,
    name: str | None = None,
    license: str | None = None,
) -> None:
    """Write config.json, noisy.safetensors, denoiser.safetensors and the card README.md.

    The card says what the pair is and, where it was made of run folders, how it was trained.
    scores: the file that `dsmooth evaluate bpd` wrote for it, whose table the card shows. name:
    the one by which the card's example reads the pair, by default the folder's. license: of the
    weights, by its name on the Hub, such as "mit". A README.md that dsmooth did not write
    stays.
    Raises ValueError for scores of another pair, and for a folder that is a file.
    """
    name, folder = name or str(folder), Path(folder)
    if folder.is_file():
        raise ValueError(f"{folder} is a file: name a folder")
    kind = SmoothingSettings(cast(SmoothingKind, pair.smoothing.kind), pair.smoothing.scale)
    networks: dict[Role, PixelCNNpp] = {"noisy": pair.noisy, "denoiser": pair.denoiser}
    digests = {role: weights_digest(network) for role, network in networks.items()}
    configs = pair.noisy.config, pair.denoiser.config
    settings = asdict(PairSettings(*configs, kind, pair.image_size, dict(pair.origin), digests))
    measured = None
    if scores is not None:
        measured = read_json(Path(scores))
        of_pair = measured.get("pair")
        if not isinstance(of_pair, dict) or of_pair.get("weights_sha256") != [*digests.values()]:
            raise ValueError(f"{scores} does not hold the scores of these weights")
    card = render_card(settings, networks, name, measured, license)
    config, path = folder / CONFIG_FILE, folder / CARD_FILE
    if config.exists() and not {"noisy", "denoiser"} <= read_json(config).keys():
        raise ValueError(
            f"{config} is not of a saved pair and is not overwritten: choose another folder"
        )
    arriving = {role: arriving_weights(folder, role, digests[role]) for role in networks}
    files = {arriving[role]: weight_bytes(network) for role, network in networks.items()}
    # With these settings the folder is the new pair, before them it is the old one.
    files[config] = json_text({"dsmooth": __version__, **settings}).encode()
    with lock_folder(folder, "another process that saves a pair"):
        if not path.exists() or MARK in path.read_text(errors="replace"):
            files[path] = card.encode()
        write_together(files)
        for role in networks:
            os.replace(arriving[role], folder / WEIGHT_FILES[role])
            for left in folder.glob(arriving_weights(Path(), role, "*").name):
                left.unlink()  # by a save that was killed


def push_to_hub(
    pair: Any,
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
        save_pretrained(pair, folder, scores=scores, name=repo_id, license=license)
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


def from_runs(cls: type[Any], noisy: str | Path, denoiser: str | Path) -> Any:
    """Make a pair of two run folders of `dsmooth train`.

    Raises FileNotFoundError or ValueError for folders that are not runs, have other roles, or
    were trained for different smoothing or image sizes.
    """
    return of_networks(cls, [*resolve(noisy), *resolve(denoiser)])


def from_pretrained(
    cls: type[Any],
    name: str | Path,
    *,
    device: str | torch.device | None = None,
    dtype: torch.dtype | None = None,
    revision: str | None = None,
    cache_dir: str | Path | None = None,
    token: str | bool | None = None,
    local_files_only: bool = False,
) -> Any:
    """Read a pair by its name or folder; both models in evaluation mode.

    name: "mnist", the pair that comes with the package; a folder that `save_pretrained` wrote;
    one with the runs `noisy` and `denoiser` in it, such as that of `dsmooth reproduce`; or, by
    the extra "hub", the "owner/name" of such a folder on the Hugging Face Hub. device, dtype:
    of the models, by default the CPU and float32.
    revision, cache_dir, token, local_files_only: of the Hub, as
    `huggingface_hub.snapshot_download` takes them.
    Raises FileNotFoundError or ValueError, naming the file, for anything else;
    ModuleNotFoundError without the extra, and OSError if the Hub does not give the pair.
    """
    if not isinstance(dtype, torch.dtype | None):
        raise TypeError(f"dtype must be a torch.dtype, such as torch.bfloat16, got {dtype!r}")
    cache = {"cache_dir": cache_dir, "local_files_only": local_files_only}
    pair = of_networks(cls, resolve(name, revision=revision, token=token, **cache))
    pair.to(device=device, dtype=dtype)
    return pair


def of_networks(cls: type[Any], saved: Sequence[SavedNetwork]) -> Any:
    """Read a noisy model and its denoiser, in this order; raises as `from_runs` does."""
    while True:
        try:
            return _read(cls, saved)
        except (OSError, ValueError):
            before, again = saved, {each.folder: resolve(each.folder) for each in saved}
            saved = [one for each in saved for one in again[each.folder] if one.role == each.role]
            if saved == before:
                raise
            # Another process saved a pair meanwhile.


def _read(cls: type[Any], saved: Sequence[SavedNetwork]) -> Any:
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
        smoothing = SMOOTHINGS[noisy.smoothing](noisy.scale)
        pair = cls(*networks, smoothing, noisy.image_size)
    except ValueError as error:
        raise ValueError(f"{found} are no pair: {error}") from None
    pair.eval()
    pair.saved = saved
    return pair


def render_card(
    settings: Mapping[str, Any],
    networks: Mapping[Role, PixelCNNpp],
    name: str,
    scores: Mapping[str, Any] | None,
    license: str | None,
) -> str:
    """The model card of a saved pair, Markdown with the Hub's front matter.

    settings: the content of its config.json.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined, TemplateError

    pages = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    # JSON is YAML, and quotes what would mean more than itself.
    pages.filters |= {
        "json": json.dumps,
        "plain": plain_text,
        "shown": shown,
        "thousands": "{:,}".format,
    }

    def bits(rows: Sequence[Mapping[str, Any]]) -> str:
        plain = [{**row, "name": plain_text(row["name"])} for row in rows]
        return bits_table({"pair": {"conventions": plain}}).markdown()

    counts = {role: sum(p.numel() for p in one.parameters()) for role, one in networks.items()}
    constants = {"MARK": MARK, "COMPARABLE": COMPARABLE, "DATASETS": DATASETS, "OWN": OWN}
    given = {"name": name, "license": license, "scores": scores, "parameters": counts, "bits": bits}
    try:
        return pages.get_template("model_card.md").render(settings, **constants, **given)
    except (AttributeError, KeyError, TypeError, ValueError, TemplateError) as error:
        if scores is None:
            raise
        raise ValueError(
            f"scores must be what `dsmooth evaluate bpd` writes of a pair: {error!r}"
        ) from None
