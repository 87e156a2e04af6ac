"""The folder of a saved pair: its settings, its weights and its model card."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, cast

from ._version import __version__
from .config import ModelConfig, Role, SmoothingKind, structure
from .files import read_json, save_weights, write_atomically, write_json
from .model_card import MARK, render_card
from .nn import PixelCNNpp
from .nn.weights import load_network
from .runs import Origin
from .smoothing import Smoothing, make_smoothing

CONFIG_FILE = "config.json"
NOISY_FILE = "noisy.safetensors"
DENOISER_FILE = "denoiser.safetensors"
CARD_FILE = "README.md"


@dataclass(frozen=True)
class PairParts:
    """What a pair is made of; origin: where its weights come from, as far as it is known."""

    noisy: PixelCNNpp
    denoiser: PixelCNNpp
    smoothing: Smoothing
    image_size: tuple[int, int]
    origin: Mapping[Role, Origin]


@dataclass(frozen=True)
class _Smoothing:
    kind: SmoothingKind
    scale: float


@dataclass(frozen=True)
class _Config:
    """What the settings' file of a saved pair holds, beside the version of dsmooth."""

    noisy: ModelConfig
    denoiser: ModelConfig
    smoothing: _Smoothing
    image_size: tuple[int, int]
    origin: dict[Role, Origin] = field(default_factory=dict)


def is_saved_pair(folder: Path) -> bool:
    """Whether `SmoothedPair.save_pretrained` wrote into `folder`."""
    return (folder / NOISY_FILE).exists()


def write_pair(
    folder: Path, parts: PairParts, *, name: str, scores: Mapping[str, Any] | None
) -> None:
    """Write settings, weights and card. A card that a person wrote stays.

    name: how `SmoothedPair.from_pretrained` finds the folder. scores: what `dsmooth evaluate bpd`
    wrote. Raises ValueError for scores of other weights or that are none.
    """
    card = render_card(asdict(_config_of(parts)), parts.noisy, parts.denoiser, name, scores)
    folder.mkdir(parents=True, exist_ok=True)
    save_weights(parts.noisy, folder / NOISY_FILE)
    save_weights(parts.denoiser, folder / DENOISER_FILE)
    write_json(folder / CONFIG_FILE, {"dsmooth": __version__, **asdict(_config_of(parts))})
    path = folder / CARD_FILE
    if not path.exists() or MARK in path.read_text(errors="replace"):
        write_atomically(path, card.encode())


def _config_of(parts: PairParts) -> _Config:
    return _Config(
        parts.noisy.config,
        parts.denoiser.config,
        _Smoothing(cast(SmoothingKind, parts.smoothing.kind), parts.smoothing.scale),
        parts.image_size,
        dict(parts.origin),
    )


def read_pair(folder: Path) -> PairParts:
    """Read the folder of a saved pair; both models in evaluation mode, on the CPU.

    Raises FileNotFoundError or ValueError, naming the file.
    """
    path = folder / CONFIG_FILE
    values = read_json(path)
    values.pop("dsmooth", None)
    with settings_in(path):
        found = structure(values, _Config)
        smoothing = make_smoothing(found.smoothing.kind, found.smoothing.scale)
    noisy = load_network(found.noisy, folder / NOISY_FILE)
    denoiser = load_network(found.denoiser, folder / DENOISER_FILE)
    return PairParts(noisy, denoiser, smoothing, found.image_size, found.origin)


@contextmanager
def settings_in(path: Path) -> Iterator[None]:
    """Errors inside name the file whose settings are wrong."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{path} is not a pair's: {error}") from None
