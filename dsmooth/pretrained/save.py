"""Write trained pairs and networks: their settings, weights and model card in a folder."""

from __future__ import annotations

import tempfile
from dataclasses import asdict, replace
from pathlib import Path

from torch import nn

from .._version import __version__
from ..config import Role
from ..files import (
    json_text,
    lock_folder,
    open_regular,
    read_json,
    replacing,
    tensor_bytes,
    write_atomically,
)
from ..nn import PixelCNNpp
from ..nn.images import check_size
from ..nn.pretrained import Pretrained
from ..nn.weights import check_weights, weights_digest
from ..pair import SmoothedPair
from ..results import BitsResult
from ..runs import CONFIG_FILE, WEIGHTS_FILE
from ..work import read_result
from .card import CARD_FILE, MARK, render_card
from .folders import CONFIG_KEY, SavedSettings
from .hub import Upload
from .loaded import training_record


def save(
    model: Pretrained,
    folder: str | Path,
    *,
    scores: str | Path | None = None,
    name: str | None = None,
    license: str | None = None,
) -> None:
    """Write a pair or a network: model.safetensors, config.json, and the model card README.md.

    One rename of the weights' file, which has the settings in its metadata, saves them. Files whose
    config.json was edited are not read. The card shows the training of networks that were read from
    run folders and not changed since. scores: the file that
    `dsmooth evaluate bpd` wrote for these weights, whose table the card shows. name: in the card's
    example, by default the folder's. license: of the weights, by its name on the Hub, such as
    "mit". A README.md that dsmooth did not write stays.

    Raises ValueError for scores of other weights, for a network whose weights are not those of its
    settings (such as parametrized ones), and for a folder that is a file or holds settings of
    something else.
    """
    folder = Path(folder)
    if folder.is_file():
        raise ValueError(f"{folder} is a file: give a folder")
    networks = _networks_of(model)
    for network in networks.values():
        check_weights(network)
    digests = {role: weights_digest(network) for role, network in networks.items()}
    settings = _settings_of(model, networks, digests)
    measured = None if scores is None else _read_scores(Path(scores), settings, digests)
    card = render_card(settings, networks, name or str(folder), measured, license)
    config, readme = folder / CONFIG_FILE, folder / CARD_FILE
    if config.exists() and "networks" not in read_json(config):
        raise ValueError(
            f"{config} is not of a saved pair or network and is not overwritten: choose another "
            "folder"
        )
    text = json_text({"dsmooth": __version__, **asdict(settings)})
    tensors = nn.ModuleDict({str(role): network for role, network in networks.items()}).state_dict()
    with lock_folder(folder, "another process that saves weights"):
        # The rename saves: before it the folder has the old weights, after it the new ones.
        with replacing(folder / WEIGHTS_FILE, tensor_bytes(tensors, {CONFIG_KEY: text})):
            config.unlink(missing_ok=True)
        write_atomically(config, text.encode())
        if _is_own_card(readme):
            write_atomically(readme, card.encode())


def push(
    model: Pretrained,
    repo_id: str,
    *,
    private: bool = False,
    token: str | None = None,
    scores: str | Path | None = None,
    license: str | None = None,
    commit_message: str = "Upload weights of dsmooth",
) -> str:
    """Write what `save` writes into the model `repo_id` of the Hugging Face Hub.

    repo_id: "owner/name", created if needed, visible to you only if `private`. token: None for the
    one of `hf auth login`. scores, license: as in `save`. Returns the commit's address. Raises
    ModuleNotFoundError without the extra "hub", OSError if the Hub does not take it, and ValueError
    for a repo_id or scores that do not fit.
    """
    upload = Upload(repo_id, token)
    with tempfile.TemporaryDirectory() as folder:
        save(model, folder, scores=scores, name=repo_id, license=license)
        return upload.send(folder, private=private, message=commit_message)


def _networks_of(model: Pretrained) -> dict[Role, PixelCNNpp]:
    if isinstance(model, SmoothedPair):
        return {"noisy": model.noisy, "denoiser": model.denoiser}
    if not isinstance(model, PixelCNNpp):
        raise TypeError(f"model must be a SmoothedPair or a PixelCNNpp, got {type(model).__name__}")
    if model.role is not None:
        return {model.role: model}
    return {"plain" if model.config.conditioning == "none" else "denoiser": model}


def _settings_of(
    model: Pretrained, networks: dict[Role, PixelCNNpp], digests: dict[Role, str]
) -> SavedSettings:
    pair = model if isinstance(model, SmoothedPair) else None
    records = {role: training_record(network) for role, network in networks.items()}
    return SavedSettings(
        {role: network.config for role, network in networks.items()},
        None if pair is None else pair.smoothing.kind,
        None if pair is None else pair.smoothing.scale,
        None if model.image_size is None else check_size(model.image_size),
        {
            role: record
            for role, record in records.items()
            if record is not None and record.weights_sha256 == digests[role]
        },
    )


def _read_scores(path: Path, settings: SavedSettings, digests: dict[Role, str]) -> BitsResult:
    """Bits/dim by `dsmooth evaluate bpd`. Raises ValueError for scores of other weights."""
    result, model = read_result(path, BitsResult), "pair" if settings.smoothing else "plain"
    bits = result.models.get(model) if result is not None else None
    if result is None or bits is None or bits.weights_sha256 != tuple(digests.values()):
        raise ValueError(f"{path} does not hold the scores of these weights")
    return replace(result, models={model: bits})


def _is_own_card(path: Path) -> bool:
    """Whether a card may be written to `path`: nothing is there, or a card of dsmooth.

    Of the file only as much is read as a card is long.
    """
    if not path.exists() and not path.is_symlink():
        return True
    try:
        with open_regular(path) as file:
            return MARK.encode() in file.read(1 << 16)
    except (ValueError, FileNotFoundError):  # a pipe, a device, a link to nothing
        return False
