"""The folder of a saved pair: its settings, its weights and its model card."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, cast

from .._version import __version__
from ..config import ModelConfig, Role, SmoothingKind
from ..files import read_json, save_weights, write_atomically, write_json
from ..nn import PixelCNNpp
from ..nn.weights import weights_digest
from ..runs import Origin
from ..smoothing import Smoothing
from .card import MARK, render_card

CONFIG_FILE = "config.json"
NOISY_FILE = "noisy.safetensors"
DENOISER_FILE = "denoiser.safetensors"
CARD_FILE = "README.md"


@dataclass(frozen=True)
class SmoothingSettings:
    """Kind and scale of the smoothing noise."""

    kind: SmoothingKind
    scale: float


@dataclass(frozen=True)
class PairSettings:
    """The settings' file of a saved pair, but for the version of dsmooth."""

    noisy: ModelConfig
    denoiser: ModelConfig
    smoothing: SmoothingSettings
    image_size: tuple[int, int]
    origin: dict[Role, Origin] = field(default_factory=dict)
    weights_sha256: dict[Role, str] = field(default_factory=dict)
    """`weights_digest` of each network; dsmooth 0.1.0 wrote none."""


def save_pair(
    folder: Path,
    noisy: PixelCNNpp,
    denoiser: PixelCNNpp,
    smoothing: Smoothing,
    image_size: tuple[int, int],
    origin: Mapping[Role, Origin],
    *,
    name: str,
    scores: Path | None,
    license: str | None = None,
) -> None:
    """Write settings, weights and card. A card that a person wrote stays.

    name: how `SmoothedPair.from_pretrained` finds the folder. scores: the file that `dsmooth
    evaluate bpd` wrote. license: for the card.
    Raises ValueError for scores of other weights or that are none, and for a folder whose settings
    are those of a run or of another program.
    """
    kind = SmoothingSettings(cast(SmoothingKind, smoothing.kind), smoothing.scale)
    digests: dict[Role, str] = {
        "noisy": weights_digest(noisy),
        "denoiser": weights_digest(denoiser),
    }
    settings = asdict(
        PairSettings(noisy.config, denoiser.config, kind, image_size, dict(origin), digests)
    )
    measured = None if scores is None else _read_scores(scores, list(digests.values()))
    card = render_card(settings, noisy, denoiser, name, measured, license)
    _check_folder(folder)
    folder.mkdir(parents=True, exist_ok=True)
    save_weights(noisy, folder / NOISY_FILE)
    save_weights(denoiser, folder / DENOISER_FILE)
    write_json(folder / CONFIG_FILE, {"dsmooth": __version__, **settings})
    path = folder / CARD_FILE
    if not path.exists() or MARK in path.read_text(errors="replace"):
        write_atomically(path, card.encode())


def _check_folder(folder: Path) -> None:
    """Raise ValueError if a folder has settings that are not a pair's."""
    path = folder / CONFIG_FILE
    if path.exists() and not {"noisy", "denoiser"} <= read_json(path).keys():
        raise ValueError(f"{path} is not that of a saved pair, and stays: choose another folder")


def _read_scores(path: Path, digests: list[str]) -> dict[str, Any]:
    """The scores in a file. Raises ValueError if they are those of other weights."""
    scores = read_json(path)
    pair = scores.get("pair")
    stated = pair.get("weights_sha256") if isinstance(pair, dict) else None
    if stated != digests:
        raise ValueError(f"{path} does not hold the scores of these weights")
    return scores
