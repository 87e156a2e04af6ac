"""Trained models that come with the package, by name: "mnist".

Each is a folder with the runs `noisy`, `denoiser` and `plain`, a model card (README.md) and the
numbers of the card (card.json). `python -m dsmooth.reproduce.card` measures them again.
"""

from __future__ import annotations

from pathlib import Path

from ..hub import download, is_hub_id

DEFAULT = "mnist"
TITLE = "models that come with dsmooth"

_HERE = Path(__file__).parent


def names() -> list[str]:
    """The names of the packaged models."""
    return sorted(path.parent.name for path in _HERE.glob("*/noisy"))


def find(name: str | Path, revision: str | None = None) -> Path:
    """The folder that `name` is: the path itself if it is there, else that of packaged models.

    Else the "owner/name" of a model on the Hugging Face Hub, which is fetched; revision: of it.
    Raises FileNotFoundError, naming what there is, if it is none of them, and as `hub.download`.
    """
    path = Path(name)
    if path.exists():
        return path
    if str(name) in names():
        return _HERE / str(name)
    if is_hub_id(name):
        return download(str(name), revision)
    raise FileNotFoundError(
        f"there is no {path}, and the package has no models of that name (it has "
        f"{', '.join(names())})"
    )
