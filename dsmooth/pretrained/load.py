"""Read trained networks by name, folder or Hub id."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import get_args

import torch
from typing_extensions import Unpack

from ..config import Role
from ..fields import difference, structure
from ..files import parse_json, read_json, read_tensors
from ..nn import PixelCNNpp
from ..nn.pretrained import HubOptions, Pretrained
from ..nn.weights import load_network, weights_digest
from ..pair import SmoothedPair
from ..progress import LOG
from ..runs import WEIGHTS_FILE, RunFolder, TrainingRecord, run_config
from ..smoothing import Smoothing
from .folders import CONFIG_KEY, PAIR, SavedSettings, has_runs, holds_networks, packaged
from .hub import download, may_be_on_hub
from .loaded import EXPECTED_MODELS, Loaded


@dataclass(frozen=True)
class _Found:
    """A network of a folder, the smoothing that it was trained for, and its saved record.

    run: None for what `save` wrote.
    """

    network: PixelCNNpp
    folder: Path
    smoothing: Smoothing | None
    run: RunFolder | None
    origin: TrainingRecord | None

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

    names: the packaged pairs "mnist", "mnist-classes" and "photos" and the network "mnist-plain"; a
    folder that `save` wrote; the folder of a run; a folder with the runs `noisy` and `denoiser` in
    it, such as that of `dsmooth reproduce`; or, by the extra "hub", the "owner/name" of such a
    folder on the Hugging Face Hub. Several names, in any order, are those of a noisy model, its
    denoiser and a plain model. device, dtype: by default the CPU and float32. kind: a subclass of
    `PixelCNNpp` or `SmoothedPair` to make. hub: revision, cache_dir, token and local_files_only, as
    `huggingface_hub.snapshot_download` takes them.

    Raises FileNotFoundError or ValueError, naming the file, for anything else;
    ModuleNotFoundError without the extra, and OSError if the Hub does not give the folder.
    """
    if not isinstance(dtype, torch.dtype | None):
        raise TypeError(f"dtype must be a torch.dtype, such as torch.bfloat16, got {dtype!r}")
    network_kind = kind if kind is not None and issubclass(kind, PixelCNNpp) else PixelCNNpp
    pair_kind = kind if kind is not None and issubclass(kind, SmoothedPair) else SmoothedPair
    found: dict[Role, _Found] = {}
    for folder in [find(name, **hub) for name in names]:
        for role, network in read_networks(folder, network_kind).items():
            if role in found:
                raise ValueError(
                    f"{found[role].folder} and {network.folder} both hold a {role} model; "
                    f"{EXPECTED_MODELS}"
                )
            found[role] = network
    if not found:
        raise ValueError(f"{EXPECTED_MODELS}; got nothing")
    loaded = Loaded(
        {role: found[role].network for role in get_args(Role) if role in found},
        _pair(pair_kind, found),
        next(iter(found.values())).smoothing,
        {role: network.folder for role, network in found.items()},
        {role: network.run for role, network in found.items() if network.run is not None},
    )
    return loaded.to(device, dtype)


def load_models(names: Sequence[str | Path]) -> Loaded:
    """Read a pair and optionally a plain model, or a single model that can draw, for a command.

    Short form of `load(*names).checked()`.
    """
    return load(*names).checked()


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


def read_networks(folder: Path, kind: type[PixelCNNpp] = PixelCNNpp) -> dict[Role, _Found]:
    """The networks of a run, of what `save` wrote, or of the runs `noisy` and `denoiser` in a
    folder, in the order of the roles.

    Each file is opened once, so both networks of a pair are of one save. A file says what it is:
    weights of a run have no settings in their metadata. Raises FileNotFoundError or ValueError,
    naming the file.
    """
    run = RunFolder(folder)
    if not run.config.exists() and not run.weights.exists():
        if has_runs(folder):
            return {role: read_networks(folder / role, kind)[role] for role in PAIR}
        names = sorted(config.parent.name for config in folder.glob(f"*/{run.config.name}"))
        hint = f"folders in {folder}, which has {', '.join(names)}"
        hint = hint if names else "a saved pair, or the folder of a run"
        raise FileNotFoundError(f"there is no {run.config}: give {hint}")
    before = _read_config(run)
    tensors, metadata = read_tensors(run.weights)
    is_run = CONFIG_KEY not in metadata
    if is_run:
        training, size = run_config(read_json(run.config), run.config)
        networks = {training.role: training.model}
        settings = SavedSettings(networks, training.smoothing, training.scale, size, {})
    else:
        settings = _saved_settings(run, metadata[CONFIG_KEY], before)
    found: dict[Role, _Found] = {}
    for role in sorted(settings.networks, key=get_args(Role).index):
        # Weights that no role claims are refused.
        others = settings.networks.keys() - {role}
        weights = {
            name.removeprefix(f"{role}."): tensor
            for name, tensor in tensors.items()
            if name.partition(".")[0] not in others
        }
        network = load_network(settings.networks[role], weights, run.weights, kind)
        network.role, network.image_size = role, settings.image_size
        network.record = partial(read_record, folder, role)
        origin = settings.origin.get(role)
        found[role] = _Found(network, folder, settings.noise, run if is_run else None, origin)
    return found


def _saved_settings(
    run: RunFolder, text: str, before: Mapping[str, object] | None
) -> SavedSettings:
    """The settings in the metadata of saved weights. ValueError if config.json has others.

    before: the content of config.json before the weights were read.
    """
    stated = parse_json(text, run.weights)
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
    return settings


def _read_config(run: RunFolder) -> Mapping[str, object] | None:
    """The content of config.json, None where there is none: a save removes it for a moment."""
    try:
        return read_json(run.config)
    except FileNotFoundError:
        return None


def _pair(kind: type[SmoothedPair], found: Mapping[Role, _Found]) -> SmoothedPair | None:
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
    found = read_networks(folder)[role]
    record = found.run.record() if found.run else found.origin
    if record is None or record.weights_sha256 is not None:
        return record
    return replace(record, weights_sha256=weights_digest(found.network))
