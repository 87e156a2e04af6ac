"""Where networks are: the packaged models, folders, and the Hugging Face Hub."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..config import Role
from ..progress import LOG
from .hub import download, may_be_on_hub
from .runs import RunFolder

DEFAULT = "mnist"
HERE = Path(__file__).parent
PAIR: tuple[Role, Role] = ("noisy", "denoiser")


def packaged() -> dict[str, Path]:
    """Folders of the packaged models by name: pairs, and the plain models next to them."""
    pairs = {folder.parent.name: folder.parent for folder in sorted(HERE.glob("*/noisy"))}
    plain = {f"{name}-plain": folder / "plain" for name, folder in pairs.items()}
    return pairs | {name: folder for name, folder in plain.items() if folder.exists()}


def runs_in(folder: Path) -> list[RunFolder]:
    """A run or what `save` wrote; else the runs `noisy` and `denoiser`; else nothing."""
    run, pair = RunFolder(folder), [RunFolder(folder / role) for role in PAIR]
    if run.config.is_file() or run.weights.is_file():
        return [run]
    return pair if all(half.config.is_file() for half in pair) else []


def is_model(path: Path) -> bool:
    """Whether `path` is a folder of networks, the name of a packaged model, or an id of the Hub."""
    return bool(runs_in(path)) or str(path) in packaged() or may_be_on_hub(path)


def find(name: str | Path, **hub: Any) -> Path:
    """The folder of `name`: a path, else packaged models, else "owner/name" on the Hub.

    A folder with the name of packaged models that holds no networks does not hide them.
    """
    path, folders = Path(name), packaged()
    folder = folders.get(str(name))
    if path.exists() and (folder is None or runs_in(path)):
        if folder is not None:
            LOG.warning("%s: the folder here, not the models that come with dsmooth", path)
        return path
    if folder is not None:
        return folder
    if may_be_on_hub(path):
        return download(str(name), **hub)
    raise FileNotFoundError(
        f"there is no {path}, and the package has no models of that name (it has "
        f"{', '.join(folders)})"
    )
