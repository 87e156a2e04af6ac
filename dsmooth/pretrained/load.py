"""Read trained networks by name, folder or Hub id."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import get_args

import torch
from torch import Tensor
from typing_extensions import Unpack

from ..config import Role
from ..fields import difference, structure
from ..files import parse_json, read_json, read_tensors
from ..nn import PixelCNNpp
from ..nn.pretrained import HubOptions, Pretrained
from ..nn.weights import load_network, tensors_digest
from ..pair import SmoothedPair
from ..progress import LOG
from ..runs import WEIGHTS_FILE, RunFolder, TrainingRecord
from ..smoothing import Smoothing
from .folders import CONFIG_KEY, HERE, PAIR, SavedSettings, has_runs, holds_networks, packaged
from .hub import download, may_be_on_hub
from .loaded import EXPECTED_MODELS, Loaded


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
    network_kind = kind if kind is not None and issubclass(kind, PixelCNNpp) else PixelCNNpp
    pair_kind = kind if kind is not None and issubclass(kind, SmoothedPair) else SmoothedPair
    folders = [find(name, **hub) for name in names]
    found = [network for folder in folders for network in read_networks(folder, network_kind)]
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
        _pair(pair_kind, by_role),
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


def read_networks(folder: Path, kind: type[PixelCNNpp] = PixelCNNpp) -> list[_Network]:
    """The networks of a run, of what `save` wrote, or of the runs `noisy` and `denoiser` in a
    folder, in the order of the roles.

    Each file is opened once, so both networks of a pair are of one save. Raises FileNotFoundError
    or ValueError, naming the file.
    """
    run = RunFolder(folder)
    if not run.config.exists() and not run.weights.exists():
        if has_runs(folder):
            return [network for role in PAIR for network in read_networks(folder / role, kind)]
        names = sorted(config.parent.name for config in folder.glob(f"*/{run.config.name}"))
        hint = f"folders in {folder}, which has {', '.join(names)}"
        hint = hint if names else "a saved pair, or the folder of a run"
        raise FileNotFoundError(f"there is no {run.config}: give {hint}")
    tensors, settings, is_run = _read_weights(run)
    found = []
    for role in sorted(settings.networks, key=get_args(Role).index):
        weights = _tensors_of(role, tensors, settings)
        network = load_network(settings.networks[role], weights, run.weights, kind)
        network.role, network.image_size = role, settings.image_size
        network.record = partial(read_record, folder, role)
        found.append(_Network(network, role, folder, settings.noise, run if is_run else None))
    return found


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


def _read_weights(run: RunFolder) -> tuple[dict[str, Tensor], SavedSettings, bool]:
    """The tensors of a folder, their settings, and whether they are of a run.

    A file says what it is: weights of a run have no settings in their metadata.
    """
    before = _read_config(run)
    tensors, metadata = read_tensors(run.weights)
    if CONFIG_KEY not in metadata:
        training, size = run.read_config()
        networks = {training.role: training.model}
        settings = SavedSettings(networks, training.smoothing, training.scale, size, {})
        return tensors, settings, True
    stated = parse_json(metadata[CONFIG_KEY], run.weights)
    # A config.json that changes meanwhile is being saved.
    unchanged = before is not None and before == _read_config(run)
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
    return tensors, settings, False


def _read_config(run: RunFolder) -> Mapping[str, object] | None:
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
    tensors, settings, is_run = _read_weights(run)
    record = run.record() if is_run else settings.origin.get(role)
    if is_run and record is not None and folder.is_relative_to(HERE):  # trained on whole data sets
        record = replace(record, command=f"{record.command} --data-dir FOLDER")
    if record is None or record.weights_sha256 is not None:
        return record
    digest = tensors_digest(_tensors_of(role, tensors, settings))
    return replace(record, weights_sha256=digest)
