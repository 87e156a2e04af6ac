"""Writer of trained pairs and networks: their settings, weights and model card in a folder."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import cast

from torch import nn

from .._version import __version__
from ..config import OWN, Role, SmoothingKind
from ..data import DATASETS
from ..fields import Json
from ..files import json_text, lock_folder, read_json, replacing, tensor_bytes, write_atomically
from ..nn import PixelCNNpp
from ..nn.images import check_size
from ..nn.pretrained import Pretrained
from ..nn.weights import weights_digest
from ..pair import SmoothedPair
from ..runs import CONFIG_FILE, WEIGHTS_FILE
from ..tables import COMPARABLE, bits_table, plain_text, shown
from . import CONFIG_KEY, Settings

CARD_FILE = "README.md"
# A card with this line is overwritten with the weights; one without it was written by a person.
MARK = "<!-- Written by dsmooth. Without this line the file is yours, and stays. -->"


def save(
    model: Pretrained,
    folder: Path,
    scores: str | Path | None = None,
    name: str | None = None,
    license: str | None = None,
) -> None:
    """Write a pair or a network, as `Pretrained.save_pretrained` says."""
    if folder.is_file():
        raise ValueError(f"{folder} is a file: name a folder")
    networks: dict[Role, PixelCNNpp]
    kind, scale = None, None
    if isinstance(model, SmoothedPair):
        networks = {"noisy": model.noisy, "denoiser": model.denoiser}
        kind, scale = cast(SmoothingKind, model.smoothing.kind), model.smoothing.scale
    else:  # a network of a noisy run is a plain one, alone
        network = cast(PixelCNNpp, model)
        networks = {"plain" if network.config.conditioning == "none" else "denoiser": network}
    configs = {role: network.config for role, network in networks.items()}
    origin = {role: network.origin for role, network in networks.items() if network.origin}
    size = None if model.image_size is None else check_size(model.image_size)
    settings = Settings(configs, kind, scale, size, origin)
    measured = None
    if scores is not None:
        measured = read_json(Path(scores))
        numbers = measured.get("pair" if kind else "plain")
        digests = [weights_digest(network) for network in networks.values()]
        if not isinstance(numbers, dict) or numbers.get("weights_sha256") != digests:
            raise ValueError(f"{scores} does not hold the scores of these weights")
    card = render_card(settings, networks, name or str(folder), measured, license)
    config, readme = folder / CONFIG_FILE, folder / CARD_FILE
    if config.exists() and "networks" not in read_json(config):
        raise ValueError(
            f"{config} is not of a saved pair or network and is not overwritten: choose another "
            "folder"
        )
    text = json_text({"dsmooth": __version__, **asdict(settings)})
    tensors = nn.ModuleDict({str(role): each for role, each in networks.items()}).state_dict()
    with lock_folder(folder, "another process that saves weights"):
        # The rename saves: before it the folder is the old weights', behind it the new ones'.
        with replacing(folder / WEIGHTS_FILE, tensor_bytes(tensors, {CONFIG_KEY: text})):
            config.unlink(missing_ok=True)
        write_atomically(config, text.encode())
        if not readme.exists() or MARK in readme.read_text(errors="replace"):
            write_atomically(readme, card.encode())


def render_card(
    settings: Settings,
    networks: Mapping[Role, PixelCNNpp],
    name: str,
    scores: Json | None,
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
    pages.filters |= {"json": json.dumps, "plain": plain_text, "shown": shown}
    pages.globals |= {"MARK": MARK, "COMPARABLE": COMPARABLE, "DATASETS": DATASETS, "OWN": OWN}

    def bits(rows: Sequence[Json]) -> str:
        plain = [{**row, "name": plain_text(row["name"])} for row in rows]
        key = "pair" if settings.smoothing else "plain"
        return bits_table({key: {"conventions": plain}}).markdown()

    counts = {role: sum(p.numel() for p in one.parameters()) for role, one in networks.items()}
    numbers = {"scores": scores, "bits": bits, "parameters": counts}
    try:
        return pages.get_template("model_card.md").render(
            asdict(settings) | numbers, name=name, license=license
        )
    except (AttributeError, KeyError, TypeError, ValueError, TemplateError) as error:
        if scores is None:
            raise
        raise ValueError(
            f"scores must be what `dsmooth evaluate bpd` writes of these weights: {error!r}"
        ) from None
