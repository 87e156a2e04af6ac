"""Where networks are: packaged models, folders, and the Hugging Face Hub by the extra `hub`."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

from ..config import Role
from ..progress import LOG
from ..text import escape_control
from .runs import RunFolder

DEFAULT = "mnist"
HERE = Path(__file__).parent
PAIR: tuple[Role, Role] = ("noisy", "denoiser")
# "owner/name", as the Hub allows it.
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}")
# Files that are fetched and uploaded; none of them runs code.
HUB_FILES = ["*.json", "*.jsonl", "*.safetensors", "*.md", "*.png"]


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


def find(name: str | Path, **hub: Any) -> Path:
    """The folder of `name`: a path, else packaged models, else "owner/name" on the Hub.

    A folder with the name of packaged models that holds no networks does not hide them. Raises
    FileNotFoundError, or OSError if the Hub does not give it.
    """
    path, folder = Path(name), packaged().get(str(name))
    if path.exists() and (folder is None or runs_in(path)):
        if folder is not None:
            LOG.warning("%s: the folder here, not the models that come with dsmooth", path)
        return path
    if folder is not None:
        return folder
    # An "owner/name" whose owner is a folder here is a path.
    if HUB_ID.fullmatch(str(path)) is not None and not path.parent.exists():
        missing = f"there is no folder {path} here"  # the name may be a path that was mistyped
        LOG.warning("%s: reading %s of the Hugging Face Hub", missing, path)
        advice = (
            "What was read once with a network stays in the cache of huggingface_hub; otherwise "
            "give a folder that save_pretrained wrote"
        )
        with hub_module(f"{missing}, and the Hugging Face Hub does not give it", advice) as module:
            return Path(module.snapshot_download(str(path), allow_patterns=HUB_FILES, **hub))
    raise FileNotFoundError(
        f"there is no {path}, and the package has no models of that name (it has "
        f"{', '.join(packaged())})"
    )


@contextmanager
def hub_module(failure: str, advice: str) -> Iterator[ModuleType]:
    """The module of the extra `hub`; any error inside becomes an OSError of one line.

    Raises ModuleNotFoundError without the extra.
    """
    try:
        import huggingface_hub
    except ImportError:
        raise ModuleNotFoundError(f"{failure}: pip install 'dsmooth[hub]'") from None
    try:
        yield huggingface_hub
    except Exception as error:  # the Hub's own classes, and those of its HTTP library
        line = escape_control(str(error).strip().partition("\n")[0].rstrip("."))
        raise OSError(f"{failure}: {line or type(error).__name__}. {advice}") from error
