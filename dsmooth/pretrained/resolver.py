"""Resolver: a name, a folder or a Hub id -> the trained networks that it stands for."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..config import ModelConfig, Role, SmoothingKind, TrainConfig
from ..fields import structure
from ..files import read_json
from ..nn import PixelCNNpp
from ..nn.weights import load_network, weights_digest
from ..progress import LOG
from ..runs import Origin, RunFolder, run_config
from ..tables import shown

DEFAULT = "mnist"
TITLE = "models that come with dsmooth"
CONFIG_FILE = "config.json"
WEIGHT_FILES: dict[Role, str] = {
    "noisy": "noisy.safetensors",
    "denoiser": "denoiser.safetensors",
}
CARD_FILE = "README.md"

# "owner/name", as the Hub allows it.
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}")
# Files that are fetched and uploaded; none of them runs code.
HUB_FILES = ["*.json", "*.jsonl", "*.safetensors", "*.md", "*.png"]

_HERE = Path(__file__).parent


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
    origin: dict[Role, Origin]
    weights_sha256: dict[Role, str]
    """`weights_digest` of each network."""


@dataclass(frozen=True)
class SavedNetwork:
    """A trained network on disk: its settings, which were read once, and the file of its weights.

    run, settings: of its training, None in a saved pair, which states `origin` and `sha256`.
    """

    folder: Path
    role: Role
    config: ModelConfig
    smoothing: SmoothingKind
    scale: float
    image_size: tuple[int, int]
    weights: Path
    run: RunFolder | None = None
    settings: TrainConfig | None = None
    origin: Origin | None = None
    sha256: str | None = None

    def load(self) -> PixelCNNpp:
        """The network in evaluation mode, on the CPU.

        Raises FileNotFoundError or ValueError, naming the file.
        """
        network = load_network(self.config, self.weights)
        if self.sha256 is not None and weights_digest(network) != self.sha256:
            raise ValueError(
                f"{self.weights} does not hold the weights that {CONFIG_FILE} beside it states: "
                "save the pair again"
            )
        return network

    def read_origin(self) -> Origin | None:
        """Origin of the weights, by the log of the run or as the saved pair states it."""
        if self.run is None:
            return self.origin
        origin = self.run.origin(self.settings)
        if self.folder.is_relative_to(_HERE):  # they were trained on whole data sets
            origin = replace(origin, command=f"{origin.command} --data-dir FOLDER")
        return origin


def names() -> list[str]:
    """The names of the packaged models."""
    return sorted(path.parent.name for path in _HERE.glob("*/noisy"))


def find(name: str | Path, **hub: Any) -> Path:
    """The folder that `name` is: a path, else packaged models, else "owner/name" on the Hub.

    A folder that is named like packaged models, but holds no networks, does not hide them.
    """
    path = Path(name)
    packaged = str(name) in names()
    if path.exists() and (_holds_networks(path) or not packaged):
        return path
    if packaged:
        return _HERE / str(name)
    if HUB_ID.fullmatch(str(name)) and not path.parent.exists():
        return _download(str(name), **hub)
    raise FileNotFoundError(
        f"there is no {path}, and the package has no models of that name (it has "
        f"{', '.join(names())})"
    )


def _download(repo_id: str, **options: Any) -> Path:
    missing = f"there is no folder {repo_id} here"
    hub = huggingface_hub(f"{missing}; to read it from the Hugging Face Hub")
    # The name may be a path that was mistyped.
    LOG.warning("%s: reading %s of the Hugging Face Hub", missing, repo_id)
    try:
        folder = hub.snapshot_download(repo_id, allow_patterns=HUB_FILES, **options)
    except Exception as error:  # the Hub's own classes, and those of its HTTP library
        raise OSError(
            f"{missing}, and the Hugging Face Hub does not give it: {first_line(error)}. What was "
            "read once with a network stays in the cache of huggingface_hub; else name a folder "
            "that save_pretrained wrote"
        ) from error
    return Path(folder)


def huggingface_hub(purpose: str) -> Any:
    """The module of the extra `hub`. Raises ModuleNotFoundError, naming the purpose, without it."""
    try:
        import huggingface_hub
    except ImportError:
        raise ModuleNotFoundError(f"{purpose}: pip install 'dsmooth[hub]'") from None
    return huggingface_hub


def first_line(error: Exception) -> str:
    """The first line of an error's message."""
    lines = str(error).strip().splitlines()
    return shown(lines[0].rstrip(".")) if lines else type(error).__name__


def is_model(path: Path) -> bool:
    """Whether `path` is a folder of networks or a name of the package's own, without the Hub."""
    return _holds_networks(path) or str(path) in names()


def _holds_networks(folder: Path) -> bool:
    return (folder / CONFIG_FILE).is_file() or _has_runs(folder)


def _has_runs(folder: Path) -> bool:
    return all((folder / role / CONFIG_FILE).is_file() for role in ("noisy", "denoiser"))


def resolve(name: str | Path, **hub: Any) -> list[SavedNetwork]:
    """The networks of a run, of a saved pair, or of the runs `noisy` and `denoiser` in a folder.

    A pair goes before the runs inside its folder. No weights are read.
    """
    folder = find(name, **hub)
    path = folder / CONFIG_FILE
    values = read_json(path) if path.exists() else None
    if values is not None and "role" not in values:
        return _read_pair(folder, values)
    if _has_runs(folder):
        inside = [folder / role / CONFIG_FILE for role in ("noisy", "denoiser")]
        return [_read_run(config.parent, read_json(config)) for config in inside]
    if values is None:
        others = sorted(config.parent.name for config in folder.glob(f"*/{CONFIG_FILE}"))
        hint = f"folders in {folder}, which has {', '.join(others)}"
        hint = hint if others else "a saved pair, or the folder of a run"
        raise FileNotFoundError(f"there is no {path}: name {hint}")
    return [_read_run(folder, values)]


def _read_run(folder: Path, values: dict[str, Any]) -> SavedNetwork:
    run = RunFolder(folder)
    settings, size = run_config(values, run.config)
    return SavedNetwork(
        folder,
        settings.role,
        settings.model,
        settings.smoothing,
        settings.scale,
        size,
        run.weights,
        run,
        settings,
    )


def _read_pair(folder: Path, values: dict[str, Any]) -> list[SavedNetwork]:
    values.pop("dsmooth", None)
    try:
        found = structure(values, PairSettings)
    except ValueError as error:
        raise ValueError(f"{folder / CONFIG_FILE} is not a pair's: {error}") from None
    networks = []
    for role, file in WEIGHT_FILES.items():
        sha256 = found.weights_sha256.get(role)
        arriving = arriving_weights(folder, role, sha256 or "")
        network = SavedNetwork(
            folder,
            role,
            found.noisy if role == "noisy" else found.denoiser,
            found.smoothing.kind,
            found.smoothing.scale,
            found.image_size,
            arriving if arriving.exists() else folder / file,
            origin=found.origin.get(role),
            sha256=sha256,
        )
        networks.append(network)
    return networks


def arriving_weights(folder: Path, role: Role, sha256: str) -> Path:
    """The temporary file of a pair's weights: it is there until `save_pretrained` renames it, and
    stays if the process is killed before."""
    return folder / f".{role}-{sha256[:16]}.safetensors"
