"""The kinds of folder that hold networks, and the packaged ones."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ..config import ModelConfig, Role, SmoothingKind
from ..runs import CONFIG_FILE, WEIGHTS_FILE, TrainingRecord
from ..smoothing import SMOOTHINGS, Smoothing
from .hub import may_be_on_hub

DEFAULT = "mnist"
TITLE = "models that come with dsmooth"

# Key of the metadata of saved weights. Its value is the text of config.json.
CONFIG_KEY = "config"
HERE = Path(__file__).parent
PAIR: tuple[Role, Role] = ("noisy", "denoiser")


@dataclass(frozen=True)
class SavedSettings:
    """config.json of a saved pair or network, and the metadata of its weights.

    smoothing, scale: of a pair. image_size: of a pair, and of a network that knows it. origin: the
    training records that are known. Raises ValueError for a scale that is not positive.
    """

    networks: dict[Role, ModelConfig]
    smoothing: SmoothingKind | None
    scale: float | None
    image_size: tuple[int, int] | None
    origin: dict[Role, TrainingRecord]

    def __post_init__(self) -> None:
        _ = self.noise

    @property
    def noise(self) -> Smoothing | None:
        """The smoothing with its scale."""
        if self.smoothing is None or self.scale is None:
            return None
        return SMOOTHINGS[self.smoothing](self.scale)


def packaged() -> dict[str, Path]:
    """Folders of the packaged models by name: pairs, and the plain models next to them."""
    pairs = {folder.parent.name: folder.parent for folder in sorted(HERE.glob("*/noisy"))}
    plain = {f"{name}-plain": folder / "plain" for name, folder in pairs.items()}
    return pairs | {name: folder for name, folder in plain.items() if folder.exists()}


def is_model(path: Path) -> bool:
    """Whether `path` is a folder of networks, the name of a packaged model, or an id of the Hub."""
    return holds_networks(path) or str(path) in packaged() or may_be_on_hub(path)


def holds_networks(folder: Path) -> bool:
    """Whether `folder` is a run or a saved pair or network, or holds the runs of a pair."""
    files = (folder / CONFIG_FILE, folder / WEIGHTS_FILE)
    return any(map(Path.is_file, files)) or has_runs(folder)


def has_runs(folder: Path) -> bool:
    """Whether `folder` holds the runs `noisy` and `denoiser`."""
    return all((folder / role / CONFIG_FILE).is_file() for role in PAIR)
