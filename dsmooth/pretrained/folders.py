"""The kinds of folder that hold networks, and the packaged ones."""

from __future__ import annotations

from pathlib import Path

from ..config import Role
from .hub import may_be_on_hub
from .runs import CONFIG_FILE, WEIGHTS_FILE

DEFAULT = "mnist"
TITLE = "models that come with dsmooth"
HERE = Path(__file__).parent
PAIR: tuple[Role, Role] = ("noisy", "denoiser")


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
