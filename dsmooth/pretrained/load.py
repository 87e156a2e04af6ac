"""Read trained networks by name, folder or Hub id."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, get_args

import torch
from torch import Tensor

from ..config import Role
from ..fields import Json, difference, structure
from ..files import parse_json, read_json, read_tensors
from ..nn import PixelCNNpp
from ..nn.pretrained import Pretrained
from ..nn.weights import load_network, tensors_digest
from ..pair import SmoothedPair
from ..progress import LOG
from ..runs import WEIGHTS_FILE, RunFolder, TrainingRecord
from ..smoothing import SMOOTHINGS, Smoothing
from .folders import CONFIG_KEY, HERE, PAIR, SavedSettings, has_runs, holds_networks, packaged
from .hub import download, may_be_on_hub
from .loaded import EXPECTED_MODELS, Loaded

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from ..nn.pretrained import HubOptions


@dataclass(frozen=True)
class _Network:
    """A network of a folder and the smoothing that it was trained for.

    run: None for what `save` wrote.
    """

    network: PixelCNNpp
    role: Role
    folder: Path
    smoothing: Smoothing | None
    run: RunFolder | None = None

    @property
    def noise(self) -> str:
        """The smoothing and the image size, in words."""
        kind, scale = (
            (self.smoothing.kind, self.smoothing.scale) if self.smoothing else (None, None)
        )
        return f"{kind} noise of scale {scale} at {self.network.image_size}"


def load(
    *names: str | Path,
    device: str | torch.device | None = None,
    dtype: torch.dtype | None = None,
    kind: type[Pretrained] | None = None,
    **hub: Unpack[HubOptions],
) -> Loaded:
    """Read a pair, a network, or a pair and a plain model, in evaluation mode.

        loaded = dsmooth.load("mnist")
        loaded.pair.sample(64)

    names: the packaged pairs "mnist" and "mnist-classes" and the network "mnist-plain"; a folder
    that `save` wrote; the folder of a run; a folder with the runs `noisy` and `denoiser` in it,
    such as that of `dsmooth reproduce`; or, by the extra "hub", the "owner/name" of such a folder
    on the Hugging Face Hub. Several names, in any order, are those of a noisy model, its denoiser
    and a plain model. device, dtype: by default the CPU and float32. kind: a subclass of
    `PixelCNNpp` or `SmoothedPair` to make. hub: revision, cache_dir, token and local_files_only, as
    `huggingface_hub.snapshot_download` takes them.

    Raises FileNotFoundError or ValueError, naming the file, for anything else;
    ModuleNotFoundError without the extra, and OSError if the Hub does not give the folder.
    """
    if not isinstance(dtype, torch.dtype | None):
        raise TypeError(f"dtype must be a torch.dtype, such as torch.bfloat16, got {dtype!r}")
    of_network = kind if kind is not None and issubclass(kind, PixelCNNpp) else PixelCNNpp
    of_pair = kind if kind is not None and issubclass(kind, SmoothedPair) else SmoothedPair
    found = [each for name in names for each in networks_in(find(name, **hub), of_network)]
    by_role: dict[Role, _Network] = {}
    for network in found:
        other = by_role.setdefault(network.role, network)
        if other is not network:
            raise ValueError(
                f"{other.folder} and {network.folder} both hold a {network.role} model; "
                f"{EXPECTED_MODELS}"
            )
    if not found:
        raise ValueError(f"{EXPECTED_MODELS}; got nothing")
    loaded = Loaded(
        {role: by_role[role].network for role in get_args(Role) if role in by_role},
        _pair(of_pair, by_role),
        found[0].smoothing,
        {network.role: network.folder for network in found},
        {network.role: network.run for network in found if network.run is not None},
    )
    return loaded.to(device, dtype)


def load_models(names: Sequence[str | Path]) -> Loaded:
    """Read a pair and optionally a plain model, or a single model that can draw, for a command."""
    loaded = load(*names)
    roles = [*loaded.networks]
    if roles == ["denoiser"]:
        raise ValueError(f"{loaded.source} is a denoiser: give the run of its noisy model too")
    if loaded.smoothed is None and len(roles) > 1:
        raise ValueError(f"{EXPECTED_MODELS}; got {', '.join(map(str, names))}")
    size, plain = loaded.image_size, loaded.plain
    if plain is not None and plain.image_size != size:
        raise ValueError(
            f"the plain model of {loaded.folders['plain']} is for images of {plain.image_size}, "
            f"the pair for {size}"
        )
    return loaded


def find(name: str | Path, **hub: Unpack[HubOptions]) -> Path:
    """The folder of `name`: a path, else packaged models, else "owner/name" on the Hub.

    A folder with the name of packaged models that holds no networks does not hide them.
    """
    path, folders = Path(name), packaged()
    folder = folders.get(str(name))
    if path.exists() and (folder is None or holds_networks(path)):
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


def networks_in(folder: Path, kind: type[PixelCNNpp] = PixelCNNpp) -> list[_Network]:
    """The networks of a run, of what `save` wrote, or of the runs `noisy` and `denoiser` in a
    folder, in the order of the roles.

    A file says what it is: weights of a run have no settings in their metadata. Each file is opened
    once, so both networks of a pair are of one save. Raises FileNotFoundError or ValueError, naming
    the file.
    """
    run = RunFolder(folder)
    if not run.config.exists() and not run.weights.exists():
        if has_runs(folder):
            return [network for role in PAIR for network in networks_in(folder / role, kind)]
        names = sorted(config.parent.name for config in folder.glob(f"*/{run.config.name}"))
        hint = f"folders in {folder}, which has {', '.join(names)}"
        hint = hint if names else "a saved pair, or the folder of a run"
        raise FileNotFoundError(f"there is no {run.config}: give {hint}")
    tensors, settings = _read_weights(run)
    if settings is not None:
        return _saved_networks(folder, tensors, settings, kind)
    training, size = run.read_config()
    network = load_network(training.model, tensors, run.weights, kind)
    network.image_size = size
    smoothing = SMOOTHINGS[training.smoothing](training.scale)
    return [_described(_Network(network, training.role, folder, smoothing, run))]


def _described(found: _Network) -> _Network:
    """The same, its network with a role and a record that is read when it is asked for."""
    found.network.role = found.role
    found.network.record = partial(read_record, found.folder, found.role)
    return found


def _saved_networks(
    folder: Path, tensors: Mapping[str, Tensor], settings: SavedSettings, kind: type[PixelCNNpp]
) -> list[_Network]:
    saved: list[_Network] = []
    smoothing = None
    if settings.smoothing is not None and settings.scale is not None:
        smoothing = SMOOTHINGS[settings.smoothing](settings.scale)
    for role in sorted(settings.networks, key=get_args(Role).index):
        weights = _tensors_of(role, tensors, settings)
        network = load_network(settings.networks[role], weights, folder / WEIGHTS_FILE, kind)
        network.image_size = settings.image_size
        saved.append(_described(_Network(network, role, folder, smoothing)))
    return saved


def _tensors_of(
    role: Role, tensors: Mapping[str, Tensor], settings: SavedSettings
) -> dict[str, Tensor]:
    """The weights of a role, and those that no role claims, which `load_network` refuses."""
    others = settings.networks.keys() - {role}
    return {
        name.removeprefix(f"{role}."): tensor
        for name, tensor in tensors.items()
        if name.partition(".")[0] not in others
    }


def _read_weights(run: RunFolder) -> tuple[dict[str, Tensor], SavedSettings | None]:
    """The tensors of a folder, and their settings unless they are of a run."""
    before = _config_beside(run)
    tensors, metadata = read_tensors(run.weights)
    if CONFIG_KEY not in metadata:
        return tensors, None
    stated = parse_json(metadata[CONFIG_KEY], run.weights)
    # A config.json that changes meanwhile is being saved.
    unchanged = before is not None and before == _config_beside(run)
    if unchanged and (words := difference(before, stated)):
        raise ValueError(
            f"{run.config} does not state the settings of {WEIGHTS_FILE} next to it: "
            f"{' '.join(words.split())}; settings of weights are not edited, save them again"
        )
    stated.pop("dsmooth", None)
    try:
        settings = structure(stated, SavedSettings)
    except ValueError as error:
        raise ValueError(f"{run.weights} is not of a pair or a network: {error}") from None
    if not settings.networks:
        raise ValueError(f"{run.weights} states no network")
    return tensors, settings


def _config_beside(run: RunFolder) -> Json | None:
    """The content of config.json, None where there is none: a save removes it for a moment."""
    try:
        return read_json(run.config)
    except FileNotFoundError:
        return None


def _pair(kind: type[SmoothedPair], found: Mapping[Role, _Network]) -> SmoothedPair | None:
    """The pair of a noisy model and its denoiser, None without both.

    Raises ValueError for networks that were trained for different smoothing or image sizes.
    """
    if not {"noisy", "denoiser"} <= found.keys():
        return None
    noisy, denoiser = found["noisy"], found["denoiser"]
    size, smoothing = noisy.network.image_size, noisy.smoothing
    named = f"noisy ({noisy.folder}), denoiser ({denoiser.folder})"
    if noisy.noise != denoiser.noise or not smoothing or not size:
        raise ValueError(
            f"the runs do not fit together: {noisy.noise} and {denoiser.noise}, of {named}"
        )
    try:
        return kind(noisy.network, denoiser.network, smoothing, size).eval()
    except ValueError as error:
        raise ValueError(f"{named} do not form a pair: {error}") from None


def read_record(folder: Path, role: Role) -> TrainingRecord | None:
    """The record in a folder of networks, with the digest of the weights that it describes."""
    run = RunFolder(folder)
    tensors, settings = _read_weights(run)
    if settings is not None:
        record = settings.origin.get(role)
        tensors = _tensors_of(role, tensors, settings)
    else:
        record = run.record()
        if folder.is_relative_to(HERE):  # trained on whole data sets
            record = replace(record, command=f"{record.command} --data-dir FOLDER")
    if record is None or record.weights_sha256 is not None:
        return record
    return replace(record, weights_sha256=tensors_digest(tensors))
