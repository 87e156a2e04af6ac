"""Write trained pairs and networks: their weights with the settings, and a model card."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from ..config import OWN, Role
from ..data import DATASETS
from ..files import lock_folder, remove_half_written, write_atomically
from ..nn import PixelCNNpp
from ..nn.images import check_size
from ..nn.pretrained import Pretrained
from ..nn.weights import check_weights, weights_digest
from ..pair import SmoothedPair
from ..results import COMPARABLE, BitsResult, bits_table
from ..smoothing import SMOOTHINGS
from ..text import render
from ..work import read_result
from .folders import HUB_FILES, hub_module
from .runs import RunFolder, WeightsSettings

CARD_FILE = "README.md"
# A card with this line is overwritten with the weights; one without it was written by a person.
MARK = "<!-- Written by dsmooth. Without this line the file is yours, and stays. -->"


def save(
    model: Pretrained,
    folder: str | Path,
    *,
    scores: str | Path | None = None,
    name: str | None = None,
    license: str | None = None,
) -> None:
    """Write a pair or a network: model.safetensors, and the model card README.md.

    The file of the weights has the settings in its metadata, so it is complete wherever it is, and
    one rename saves all. The card shows the training of networks that were not changed since.
    scores: a file by `dsmooth evaluate bpd` of these weights, whose table the card shows. name: in
    the card's example, by default the folder's. license: of the weights, by its name on the Hub,
    such as "mit". A README.md that dsmooth did not write stays.

    Raises ValueError for scores of other weights, for a network whose weights are not those of its
    settings (such as parametrized ones), and for the folder of a training run.
    """
    run, networks = RunFolder(folder), _networks_of(model)
    if run.config.exists():
        raise ValueError(f"{folder} is the folder of a training run: choose another one")
    for network in networks.values():
        check_weights(network)
    settings = _settings_of(model, networks)
    measured = None if scores is None else _read_scores(Path(scores), networks)
    card = render(
        Path(__file__).with_name("model_card.md"),
        **asdict(settings),
        name=name or str(folder),
        license=license,
        parameters={r: sum(p.numel() for p in n.parameters()) for r, n in networks.items()},
        scores=measured,
        table="" if measured is None else bits_table(measured).markdown(),
        MARK=MARK,
        COMPARABLE=COMPARABLE,
        DATASETS=DATASETS,
        OWN=OWN,
    )
    with lock_folder(run.path, "another process that saves weights"):
        remove_half_written(run.path)
        run.write_weights(networks, settings)
        path = run.path / CARD_FILE
        is_own = path.is_file() and not path.is_symlink() and MARK.encode() in path.read_bytes()
        if is_own or not os.path.lexists(path):
            write_atomically(path, card.encode())


def push(
    model: Pretrained,
    repo_id: str,
    *,
    private: bool = False,
    token: str | None = None,
    commit_message: str = "Upload weights of dsmooth",
    **card: Any,
) -> str:
    """Write what `save` writes into the model `repo_id` of the Hugging Face Hub.

    repo_id: "owner/name", created if needed, visible to you only if `private`. token: None for the
    one of `hf auth login`. card: scores and license, as in `save`. Returns the commit's address.
    Raises ModuleNotFoundError without the extra "hub", OSError if the Hub does not take it, and
    ValueError for scores that do not fit.
    """
    failure = f"could not write {repo_id} on the Hugging Face Hub"
    advice = "Writing needs a network and a token: `hf auth login`, or token="
    with tempfile.TemporaryDirectory() as folder:
        save(model, folder, **{"name": repo_id, **card})
        with hub_module(failure, advice) as hub:
            api = hub.HfApi(token=token)
            api.create_repo(repo_id, private=private, exist_ok=True)
            commit = api.upload_folder(
                repo_id=repo_id,
                folder_path=folder,
                allow_patterns=HUB_FILES,
                commit_message=commit_message,
            )
            return str(commit.commit_url)


def _networks_of(model: Pretrained) -> dict[Role, PixelCNNpp]:
    if isinstance(model, SmoothedPair):
        return {"noisy": model.noisy, "denoiser": model.denoiser}
    assert isinstance(model, PixelCNNpp)
    return {model.role or ("plain" if model.config.conditioning == "none" else "denoiser"): model}


def _settings_of(model: Pretrained, networks: Mapping[Role, PixelCNNpp]) -> WeightsSettings:
    kind = scale = None
    if isinstance(model, SmoothedPair):
        kind, scale, own = model.smoothing.kind, model.smoothing.scale, type(model.smoothing)
        if SMOOTHINGS.get(kind) is not own:
            raise ValueError(
                f"a pair is saved with smoothing of the library, not with a {own.__name__}"
            )
    size = None if model.image_size is None else check_size(model.image_size)
    records = {role: network.record for role, network in networks.items()}
    return WeightsSettings(
        kind,
        scale,
        size,
        {role: network.config for role, network in networks.items()},
        {
            role: record
            for role, record in records.items()
            if record is not None and record.weights_sha256 == weights_digest(networks[role])
        },
    )


def _read_scores(path: Path, networks: Mapping[Role, PixelCNNpp]) -> BitsResult:
    """Bits/dim by `dsmooth evaluate bpd`. Raises ValueError for scores of other weights."""
    result, model = read_result(path, BitsResult), "pair" if len(networks) > 1 else "plain"
    bits = result.models.get(model) if result is not None else None
    digests = tuple(map(weights_digest, networks.values()))
    if result is None or bits is None or bits.weights_sha256 != digests:
        raise ValueError(f"{path} does not hold the scores of these weights")
    return replace(result, models={model: bits})
