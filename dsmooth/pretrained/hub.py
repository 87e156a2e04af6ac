"""Folders of the Hugging Face Hub, by the extra `hub`."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from ..progress import LOG

# "owner/name", as the Hub allows it.
_ID = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}")
# Files that are fetched and uploaded; none of them runs code.
_FILES = ["*.json", "*.jsonl", "*.safetensors", "*.md", "*.png"]


def is_hub_id(name: str | Path) -> bool:
    """Whether `name` is an "owner/name" of the Hub; if `owner` is a folder here it is a path."""
    text = str(name)
    return _ID.fullmatch(text) is not None and not Path(text).parent.exists()


def download(repo_id: str, revision: str | None = None, **options: Any) -> Path:
    """The folder of a model on the Hub, fetched into the cache of huggingface_hub if need be.

    A warning says so, for the name may be a path that was mistyped. options: of
    `SmoothedPair.from_pretrained`; the Hub does not see those that are None or False.
    """
    missing = f"there is no folder {repo_id} here"
    hub = _huggingface_hub(f"{missing}; to read it from the Hugging Face Hub")
    LOG.warning("%s: reading %s of the Hugging Face Hub", missing, repo_id)
    given = {name: value for name, value in options.items() if value}
    try:
        folder = hub.snapshot_download(repo_id, revision=revision, allow_patterns=_FILES, **given)
    except Exception as error:  # the Hub's own classes, and those of its HTTP library
        raise OSError(
            f"{missing}, and the Hugging Face Hub does not give it: {_first_line(error)}. What was "
            "read once with a network stays in the cache of huggingface_hub; else name a folder "
            "that save_pretrained wrote"
        ) from error
    return Path(folder)


def upload(
    folder: Path, repo_id: str, *, private: bool, token: str | None, commit_message: str
) -> str:
    """Put the files of `folder` into the model `repo_id`, made if need be; the commit's address."""
    if _ID.fullmatch(repo_id) is None:
        raise ValueError(f'repo_id must be "owner/name", got {repo_id!r}')
    hub = _huggingface_hub(f"to write {repo_id} on the Hugging Face Hub")
    try:
        api = hub.HfApi(token=token)
        api.create_repo(repo_id, private=private, exist_ok=True)
        commit = api.upload_folder(
            repo_id=repo_id,
            folder_path=str(folder),
            allow_patterns=_FILES,
            commit_message=commit_message,
        )
    except Exception as error:
        raise OSError(
            f"could not write {repo_id} on the Hugging Face Hub: {_first_line(error)}. Writing "
            "needs a network and a token: `hf auth login`, or token="
        ) from error
    return str(commit.commit_url)


def _huggingface_hub(purpose: str) -> Any:
    try:
        import huggingface_hub
    except ImportError:
        raise ModuleNotFoundError(f"{purpose}: pip install 'dsmooth[hub]'") from None
    return huggingface_hub


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0].rstrip(".") if lines else type(error).__name__
