"""Trained networks by name: a name, a folder or a Hub id -> the networks that it stands for.

`writer` writes pairs and networks with their model cards; `convert` reads checkpoints of older
PyTorch ports. The folders here are the models that come with the package: the runs `noisy`,
`denoiser` and `plain`, a model card (README.md) and its numbers (card.json), which
`python tools/card.py` of the sources measures again.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import TypeVar, cast, get_args

from ..config import ModelConfig, Role, SmoothingKind
from ..fields import Json, difference, structure
from ..files import parse_json, read_json, read_tensors
from ..nn import PixelCNNpp
from ..nn.pretrained import Pretrained
from ..nn.weights import load_network
from ..pair import SmoothedPair
from ..progress import LOG
from ..runs import CONFIG_FILE, WEIGHTS_FILE, Origin, RunFolder
from ..smoothing import SMOOTHINGS
from ..tables import shown

DEFAULT = "mnist"
TITLE = "models that come with dsmooth"

# "owner/name", as the Hub allows it.
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}")
# Files that are fetched and uploaded; none of them runs code.
HUB_FILES = ["*.json", "*.jsonl", "*.safetensors", "*.md", "*.png"]

# Key of the metadata of saved weights. Its value is the text of config.json.
CONFIG_KEY = "config"

_HERE = Path(__file__).parent
_PAIR: tuple[Role, Role] = ("noisy", "denoiser")
P = TypeVar("P", bound=Pretrained)
Pair = TypeVar("Pair", bound=SmoothedPair)


@dataclass(frozen=True)
class Settings:
    """config.json of a saved pair or network, and the metadata of its weights.

    smoothing, scale: of a pair. image_size: of a pair, and of a network that knows it.
    """

    networks: dict[Role, ModelConfig]
    smoothing: SmoothingKind | None
    scale: float | None
    image_size: tuple[int, int] | None
    origin: dict[Role, Origin]


@dataclass(frozen=True)
class SavedNetwork:
    """A trained network of a folder, in evaluation mode, on the CPU.

    smoothing, scale: those that it was trained for. run: None for what `save_pretrained` wrote.
    """

    folder: Path
    role: Role
    network: PixelCNNpp
    smoothing: SmoothingKind | None
    scale: float | None
    run: RunFolder | None = None


def packaged() -> dict[str, Path]:
    """Folders of the packaged models by name: pairs, and the plain models beside them."""
    pairs = {folder.parent.name: folder.parent for folder in sorted(_HERE.glob("*/noisy"))}
    plain = {f"{name}-plain": folder / "plain" for name, folder in pairs.items()}
    return pairs | {name: folder for name, folder in plain.items() if folder.exists()}


def find(
    name: str | Path,
    *,
    revision: str | None = None,
    cache_dir: str | Path | None = None,
    token: str | bool | None = None,
    local_files_only: bool = False,
) -> Path:
    """The folder that `name` is: a path, else packaged models, else "owner/name" on the Hub.

    A folder that is named like packaged models, but holds no networks, does not hide them.
    """
    path, folders = Path(name), packaged()
    folder = folders.get(str(name))
    if path.exists() and (folder is None or _holds_networks(path)):
        if folder is not None:
            LOG.warning("%s: the folder here, not the models that come with dsmooth", path)
        return path
    if folder is not None:
        return folder
    if not _may_be_on_hub(path):
        raise FileNotFoundError(
            f"there is no {path}, and the package has no models of that name (it has "
            f"{', '.join(folders)})"
        )
    missing = f"there is no folder {name} here"
    hub = huggingface_hub(f"{missing}; to read it from the Hugging Face Hub")
    # The name may be a path that was mistyped.
    LOG.warning("%s: reading %s of the Hugging Face Hub", missing, name)
    try:
        snapshot = hub.snapshot_download(
            str(name),
            allow_patterns=HUB_FILES,
            revision=revision,
            cache_dir=cache_dir,
            token=token,
            local_files_only=local_files_only,
        )
    except Exception as error:  # the Hub's own classes, and those of its HTTP library
        raise OSError(
            f"{missing}, and the Hugging Face Hub does not give it: {first_line(error)}. What was "
            "read once with a network stays in the cache of huggingface_hub; else name a folder "
            "that save_pretrained wrote"
        ) from error
    return Path(snapshot)


def huggingface_hub(purpose: str) -> ModuleType:
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
    """Whether `path` is a folder of networks, a name of the package's own, or an id of the Hub."""
    return _holds_networks(path) or str(path) in packaged() or _may_be_on_hub(path)


def _may_be_on_hub(path: Path) -> bool:
    return HUB_ID.fullmatch(str(path)) is not None and not path.parent.exists()


def _holds_networks(folder: Path) -> bool:
    files = (folder / CONFIG_FILE, folder / WEIGHTS_FILE)
    return any(map(Path.is_file, files)) or _has_runs(folder)


def _has_runs(folder: Path) -> bool:
    return all((folder / role / CONFIG_FILE).is_file() for role in _PAIR)


def resolve(name: str | Path) -> list[SavedNetwork]:
    """The networks that `name` stands for, see `find` and `networks_in`."""
    return networks_in(find(name))


def networks_in(folder: Path, kind: type[PixelCNNpp] = PixelCNNpp) -> list[SavedNetwork]:
    """The networks of a run, of what `save_pretrained` wrote, or of the runs `noisy` and `denoiser`
    in a folder, in the order of the roles.

    A file says what it is: weights of a run have no settings in their metadata. Each file is opened
    once, so both networks of a pair are of one save. Raises FileNotFoundError or ValueError, naming
    the file.
    """
    run = RunFolder(folder)
    if not run.config.exists() and not run.weights.exists():
        if _has_runs(folder):
            return [network for role in _PAIR for network in networks_in(folder / role, kind)]
        names = sorted(config.parent.name for config in folder.glob(f"*/{CONFIG_FILE}"))
        hint = f"folders in {folder}, which has {', '.join(names)}"
        hint = hint if names else "a saved pair, or the folder of a run"
        raise FileNotFoundError(f"there is no {run.config}: name {hint}")
    before = _read_beside(run.config)
    tensors, metadata = read_tensors(run.weights)
    if CONFIG_KEY not in metadata:
        training, size = run.read_config()
        network = load_network(training.model, tensors, run.weights, kind)
        network.image_size, network.origin = size, run.origin()
        if folder.is_relative_to(_HERE):  # trained on whole data sets
            command = f"{network.origin.command} --data-dir FOLDER"
            network.origin = replace(network.origin, command=command)
        smoothing, scale = training.smoothing, training.scale
        return [SavedNetwork(folder, training.role, network, smoothing, scale, run)]
    stated = parse_json(metadata[CONFIG_KEY], run.weights)
    # A config.json that changes meanwhile is being saved.
    unchanged = before is not None and before == _read_beside(run.config)
    if unchanged and (words := difference(before, stated)):
        raise ValueError(
            f"{run.config} does not state the settings of {WEIGHTS_FILE} beside it: "
            f"{' '.join(words.split())}; settings of weights are not edited, save them again"
        )
    stated.pop("dsmooth", None)
    try:
        settings = structure(stated, Settings)
    except ValueError as error:
        raise ValueError(f"{run.weights} is not of a pair or a network: {error}") from None
    if not settings.networks:
        raise ValueError(f"{run.weights} states no network")
    saved: list[SavedNetwork] = []
    for role in sorted(settings.networks, key=get_args(Role).index):
        others = settings.networks.keys() - {role}
        of_role = {
            name.removeprefix(f"{role}."): tensor
            for name, tensor in tensors.items()
            if name.partition(".")[0] not in others
        }
        network = load_network(settings.networks[role], of_role, run.weights, kind)
        network.image_size, network.origin = settings.image_size, settings.origin.get(role)
        saved.append(SavedNetwork(folder, role, network, settings.smoothing, settings.scale))
    return saved


def _read_beside(config: Path) -> Json | None:
    """The content of config.json, None where there is none: a save removes it for a moment."""
    try:
        return read_json(config)
    except FileNotFoundError:
        return None


def read(kind: type[P], folder: Path) -> P:
    """The pair or the network of a class, in evaluation mode. Raises ValueError for other ones."""
    if issubclass(kind, SmoothedPair):
        return cast(P, pair_of(kind, networks_in(folder)))
    saved = networks_in(folder, cast("type[PixelCNNpp]", kind))
    if len(saved) > 1:
        raise ValueError(f"{folder} is of a pair, which dsmooth.SmoothedPair.from_pretrained reads")
    return cast(P, saved[0].network)


def pair_of(kind: type[Pair], saved: Sequence[SavedNetwork]) -> Pair:
    """The pair of a noisy model and its denoiser, in this order.

    Raises ValueError for networks that have other roles, or that were trained for different
    smoothing or image sizes.
    """
    named = ", ".join(f"{each.role} ({each.folder})" for each in saved)
    if [each.role for each in saved] != ["noisy", "denoiser"]:
        raise ValueError(
            f"a pair needs the run of a noisy model and the run of a denoiser, got {named}"
        )
    noisy, denoiser = saved
    size = noisy.network.image_size
    one, two = (
        f"{each.smoothing} noise of scale {each.scale} at {each.network.image_size}"
        for each in saved
    )
    if one != two or not noisy.smoothing or not noisy.scale or not size:
        raise ValueError(f"the runs do not fit together: {one} and {two}, of {named}")
    try:
        smoothing = SMOOTHINGS[noisy.smoothing](noisy.scale)
        return kind(noisy.network, denoiser.network, smoothing, size).eval()
    except ValueError as error:
        raise ValueError(f"{named} are no pair: {error}") from None
