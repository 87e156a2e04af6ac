"""Folders of networks on the Hugging Face Hub, by the extra `hub`."""

from __future__ import annotations

import re
from pathlib import Path
from types import ModuleType
from typing import Any

from ..progress import LOG
from ..text import escape_control

# "owner/name", as the Hub allows it.
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}")
# Files that are fetched and uploaded; none of them runs code.
HUB_FILES = ["*.json", "*.jsonl", "*.safetensors", "*.md", "*.png"]


def may_be_on_hub(path: Path) -> bool:
    """Whether `path` is an "owner/name" whose owner is not a folder here."""
    return HUB_ID.fullmatch(str(path)) is not None and not path.parent.exists()


def download(name: str, **options: Any) -> Path:
    """The folder in the Hub's cache. Raises OSError if the Hub does not give it."""
    missing = f"there is no folder {name} here"
    hub = _library(f"{missing}; to read it from the Hugging Face Hub")
    # The name may be a path that was mistyped.
    LOG.warning("%s: reading %s of the Hugging Face Hub", missing, name)
    try:
        return Path(hub.snapshot_download(name, allow_patterns=HUB_FILES, **options))
    except Exception as error:  # the Hub's own classes, and those of its HTTP library
        raise OSError(
            f"{missing}, and the Hugging Face Hub does not give it: {_first_line(error)}. What was "
            "read once with a network stays in the cache of huggingface_hub; otherwise give a "
            "folder that save_pretrained wrote"
        ) from error


def upload(folder: str, repo_id: str, *, private: bool, token: str | None, message: str) -> str:
    """Upload a folder to the model `repo_id`; returns the commit's address. Raises OSError if the
    Hub refuses it."""
    api = _library(f"to write {repo_id} on the Hugging Face Hub").HfApi(token=token)
    try:
        api.create_repo(repo_id, private=private, exist_ok=True)
        commit = api.upload_folder(
            repo_id=repo_id, folder_path=folder, allow_patterns=HUB_FILES, commit_message=message
        )
    except Exception as error:
        raise OSError(
            f"could not write {repo_id} on the Hugging Face Hub: {_first_line(error)}. "
            "Writing needs a network and a token: `hf auth login`, or token="
        ) from error
    return str(commit.commit_url)


def _library(purpose: str) -> ModuleType:
    """The module of the extra `hub`. Raises ModuleNotFoundError, naming the purpose, without it."""
    try:
        import huggingface_hub
    except ImportError:
        raise ModuleNotFoundError(f"{purpose}: pip install 'dsmooth[hub]'") from None
    return huggingface_hub


def _first_line(error: Exception) -> str:
    """The first line of an error's message."""
    lines = str(error).strip().splitlines()
    return escape_control(lines[0].rstrip(".")) if lines else type(error).__name__
