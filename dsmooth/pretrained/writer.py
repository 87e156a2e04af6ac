"""Writer of trained pairs and networks: settings, weights and a model card, here or on the Hub."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast

from .._version import __version__
from ..config import OWN, Role, SmoothingKind
from ..data import DATASETS
from ..files import (
    json_text,
    lock_folder,
    read_json,
    read_tensors,
    replacing,
    tensor_bytes,
    write_atomically,
)
from ..nn import PixelCNNpp
from ..nn.images import check_size
from ..nn.pretrained import Pretrained
from ..nn.weights import weights_digest
from ..pair import SmoothedPair
from ..runs import CONFIG_FILE, WEIGHTS_FILE
from ..tables import COMPARABLE, bits_table, plain_text, shown
from .resolver import (
    CONFIG_KEY,
    HUB_FILES,
    HUB_ID,
    Settings,
    SmoothingSettings,
    first_line,
    huggingface_hub,
)

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
    """Write a pair or a network, as `Pretrained.save_pretrained` says."""
    name, folder = name or str(folder), Path(folder)
    if folder.is_file():
        raise ValueError(f"{folder} is a file: name a folder")
    networks = networks_of(model)
    settings = settings_of(model, networks)
    measured = None
    if scores is not None:
        measured = read_json(Path(scores))
        numbers = measured.get("pair" if settings.smoothing else "plain")
        digests = [weights_digest(network) for network in networks.values()]
        if not isinstance(numbers, dict) or numbers.get("weights_sha256") != digests:
            raise ValueError(f"{scores} does not hold the scores of these weights")
    card = render_card(settings, networks, name, measured, license)
    config, weights, readme = (folder / file for file in (CONFIG_FILE, WEIGHTS_FILE, CARD_FILE))
    if config.exists():
        is_ours = "networks" in read_json(config)
    else:
        is_ours = not weights.exists() or CONFIG_KEY in read_tensors(weights)[1]
    if not is_ours:
        raise ValueError(
            f"{folder} holds a {CONFIG_FILE} or {WEIGHTS_FILE} that save_pretrained did not write, "
            "and which is not overwritten: choose another folder"
        )
    text = json_text({"dsmooth": __version__, **asdict(settings)})
    tensors = {
        f"{role}.{key}": tensor
        for role, network in networks.items()
        for key, tensor in network.state_dict().items()
    }
    with lock_folder(folder, "another process that saves weights"):
        # The rename saves: before it the folder is the old weights', behind it the new ones'.
        with replacing(weights, tensor_bytes(tensors, {CONFIG_KEY: text})):
            config.unlink(missing_ok=True)
        write_atomically(config, text.encode())
        if not readme.exists() or MARK in readme.read_text(errors="replace"):
            write_atomically(readme, card.encode())


def push(
    model: Pretrained,
    repo_id: str,
    *,
    private: bool,
    token: str | None,
    scores: str | Path | None,
    license: str | None,
    commit_message: str,
) -> str:
    """Write a pair or a network, as `Pretrained.push_to_hub` says."""
    if HUB_ID.fullmatch(repo_id) is None:
        raise ValueError(f'repo_id must be "owner/name", got {repo_id!r}')
    api = huggingface_hub(f"to write {repo_id} on the Hugging Face Hub").HfApi(token=token)
    with tempfile.TemporaryDirectory() as folder:
        save(model, folder, scores=scores, name=repo_id, license=license)
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


def networks_of(model: Pretrained) -> dict[Role, PixelCNNpp]:
    """The networks of a pair, or a network alone: a denoiser if it takes a context, else plain."""
    if isinstance(model, SmoothedPair):
        return {"noisy": model.noisy, "denoiser": model.denoiser}
    network = cast(PixelCNNpp, model)
    return {"plain" if network.config.conditioning == "none" else "denoiser": network}


def settings_of(model: Pretrained, networks: Mapping[Role, PixelCNNpp]) -> Settings:
    """The settings that are saved."""
    origin, smoothing, size = dict(model.origin), None, model.image_size
    if isinstance(model, SmoothedPair):
        kind = cast(SmoothingKind, model.smoothing.kind)
        smoothing = SmoothingSettings(kind, model.smoothing.scale)
    else:  # a network of a noisy run is a plain one now
        origin = dict(zip(networks, origin.values(), strict=False))
    return Settings(
        networks={role: network.config for role, network in networks.items()},
        smoothing=smoothing,
        image_size=None if size is None else check_size(size),
        origin=origin,
    )


def render_card(
    settings: Settings,
    networks: Mapping[Role, PixelCNNpp],
    name: str,
    scores: Mapping[str, Any] | None,
    license: str | None,
) -> str:
    """The model card of saved weights, Markdown with the Hub's front matter."""
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
        return bits_table(
            {"pair" if settings.smoothing else "plain": {"conventions": plain}}
        ).markdown()

    counts = {role: sum(p.numel() for p in one.parameters()) for role, one in networks.items()}
    try:
        return pages.get_template("model_card.md").render(
            asdict(settings),
            MARK=MARK,
            COMPARABLE=COMPARABLE,
            DATASETS=DATASETS,
            OWN=OWN,
            name=name,
            license=license,
            scores=scores,
            parameters=counts,
            bits=bits,
        )
    except (AttributeError, KeyError, TypeError, ValueError, TemplateError) as error:
        if scores is None:
            raise
        raise ValueError(
            f"scores must be what `dsmooth evaluate bpd` writes of these weights: {error!r}"
        ) from None
