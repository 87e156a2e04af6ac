"""Read trained networks by name, folder or Hub id, into one `Loaded`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple, get_args

import torch

from ..config import Classes, Role
from ..fields import difference
from ..nn import PixelCNNpp
from ..nn.pretrained import Pretrained
from ..nn.weights import load_network, weights_digest
from ..pair import SmoothedPair
from ..progress import LOG
from ..smoothing import Smoothing
from .folders import PAIR, has_runs, holds_networks, packaged
from .hub import download, may_be_on_hub
from .runs import RunFolder, WeightsSettings, read_weights

EXPECTED_MODELS = (
    "give a saved pair, or the run folders of a noisy model and of its denoiser, and optionally "
    "that of a plain model"
)


@dataclass(frozen=True)
class Loaded:
    """Networks in memory, in evaluation mode: a pair, a pair and a plain model, or one network.

    networks: in the order of the roles. runs: the folders of those that were read from runs, in the
    order given. smoothing: that the first network was trained for, if that is known.
    """

    networks: Mapping[Role, PixelCNNpp]
    runs: Mapping[Role, RunFolder] = field(default_factory=dict)
    smoothing: Smoothing | None = None
    _source: str = "this"
    _pair: SmoothedPair | None = None

    def __post_init__(self) -> None:
        plain, sizes = self.plain, {network.image_size for network in self.networks.values()}
        if plain is not None and len(sizes) > 1:
            raise ValueError(
                f"the plain model is for images of {plain.image_size}, the pair for others: {sizes}"
            )

    @property
    def pair(self) -> SmoothedPair:
        """The pair. Raises ValueError for a single model."""
        if self._pair is None:
            raise ValueError(f"{self._source} is a single model: {EXPECTED_MODELS}")
        return self._pair

    @property
    def plain(self) -> PixelCNNpp | None:
        """The plain model, if there is one."""
        return self.networks.get("plain")

    @property
    def model(self) -> SmoothedPair | PixelCNNpp:
        """The pair or the single network."""
        if self._pair is not None and self.plain is not None:
            raise ValueError(f"one model draws at a time, got {', '.join(self.networks)}")
        return self._pair or self._first

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(C, H, W) of the images. Raises ValueError where the weights do not state it."""
        if self._first.image_size is None:
            raise ValueError(
                f"{self._source} does not say how large its images are: save it again with "
                "its image_size = (H, W)"
            )
        return (self._first.config.image_channels, *self._first.image_size)

    @property
    def classes(self) -> Classes | None:
        """The classes of the models that have some."""
        known = (network.config.classes for network in self.networks.values())
        return next(filter(None, known), None)

    @property
    def device(self) -> torch.device:
        """Device of the networks."""
        return self._first.device

    def identity(self) -> dict[str, object]:
        """What decides images: the digests of the weights, and the settings, as JSON."""
        smoothing = None if self._pair is None else self._pair.smoothing
        return {
            "weights_sha256": {str(r): weights_digest(n) for r, n in self.networks.items()},
            "networks": {str(r): asdict(n.config) for r, n in self.networks.items()},
            "smoothing": smoothing and {"kind": smoothing.kind, "scale": smoothing.scale},
        }

    @property
    def _first(self) -> PixelCNNpp:
        """The noisy model, or the only network."""
        return next(iter(self.networks.values()))


class _Found(NamedTuple):
    """A network, where it was, and what its file says."""

    network: PixelCNNpp
    run: RunFolder
    settings: WeightsSettings


def load(
    *names: str | Path,
    device: str | torch.device | None = None,
    dtype: torch.dtype | None = None,
    kind: type[Pretrained] | None = None,
    **hub: Any,
) -> Loaded:
    """Read a pair, a network, or a pair and a plain model, in evaluation mode.

        loaded = dsmooth.load("mnist")
        loaded.pair.sample(64)

    names: the packaged pairs "mnist", "mnist-classes" and "photos" and the network "mnist-plain"; a
    folder that `save` wrote; the folder of a run; a folder with the runs `noisy` and `denoiser` in
    it, such as that of `dsmooth reproduce`; or, by the extra "hub", the "owner/name" of such a
    folder on the Hugging Face Hub. Several names, in any order, are those of a noisy model, its
    denoiser and a plain model. device, dtype: by default the CPU and float32. kind: a subclass of
    `PixelCNNpp` or `SmoothedPair` to make. hub: revision, cache_dir, token and other arguments of
    `huggingface_hub.snapshot_download`.

    Raises FileNotFoundError or ValueError, naming the file, for anything else, and for networks
    that do not fit together; ModuleNotFoundError without the extra, and OSError if the Hub does not
    give the folder.
    """
    found: dict[Role, _Found] = {}
    for folder in [find(name, **hub) for name in names]:
        for role, one in read_networks(folder, kind).items():
            if role in found:
                raise ValueError(
                    f"{found[role].run.path} and {folder} both hold a {role} model; "
                    f"{EXPECTED_MODELS}"
                )
            found[role] = one
    roles = [role for role in get_args(Role) if role in found]
    is_pair = found.keys() >= {*PAIR}
    if not roles or (len(roles) > 1 and not is_pair):
        raise ValueError(f"{EXPECTED_MODELS}; got {', '.join(map(str, names)) or 'nothing'}")
    for one in found.values():
        one.network.to(device=device, dtype=dtype)
    return Loaded(
        {role: found[role].network for role in roles},
        {role: one.run for role, one in found.items() if one.run.has_settings()},
        found[roles[0]].settings.noise,
        str(next(iter(found.values())).run.path),
        _pair(kind, found) if is_pair else None,
    )


def find(name: str | Path, **hub: Any) -> Path:
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


def read_networks(folder: Path, kind: type[Pretrained] | None = None) -> dict[Role, _Found]:
    """The networks of a run, of what `save` wrote, or of the runs `noisy` and `denoiser`.

    One file has the weights and their settings, so both networks of a pair are of one save. The
    settings of a run, which say where its images are, must be those of its weights. Raises
    FileNotFoundError or ValueError, naming the file.
    """
    run = RunFolder(folder)
    if not run.config.exists() and not run.weights.exists():
        if has_runs(folder):
            pair = {role: read_networks(folder / role, kind) for role in PAIR}
            for role, half in pair.items():
                if role not in half:
                    raise ValueError(f"{folder / role} has a {', '.join(half)} model, not a {role}")
            return {role: half[role] for role, half in pair.items()}
        names = sorted(config.parent.name for config in folder.glob(f"*/{run.config.name}"))
        hint = f"folders in {folder}, which has {', '.join(names)}"
        hint = hint if names else "a saved pair, or the folder of a run"
        raise FileNotFoundError(f"there is no {run.weights}: give {hint}")
    tensors, settings = read_weights(run)
    if run.has_settings():
        _check_run(run, settings)
    found: dict[Role, _Found] = {}
    for role, config in settings.networks.items():
        # Weights that no role claims are refused.
        others = settings.networks.keys() - {role}
        weights = {
            name.removeprefix(f"{role}."): tensor
            for name, tensor in tensors.items()
            if name.partition(".")[0] not in others
        }
        made = kind if kind is not None and issubclass(kind, PixelCNNpp) else PixelCNNpp
        network = load_network(config, weights, run.weights, made)
        network.role, network.image_size = role, settings.image_size
        record = settings.training.get(role)
        network.record = record and replace(record, seconds=record.seconds or run.seconds())
        found[role] = _Found(network, run, settings)
    return found


def _check_run(run: RunFolder, settings: WeightsSettings) -> None:
    """Raise ValueError for weights of another run than the one whose settings are beside them."""
    config, size = run.read_config()
    asked = asdict(WeightsSettings.of_run(config, size))
    own = asdict(replace(settings, training={}))
    for record in settings.training.values():
        asked |= {"data": config.data, "seed": config.seed}
        own |= {"data": record.data, "seed": record.seed}
    if words := difference(asked, own):
        raise ValueError(
            f"{run.config} is not of the weights next to it: {words}; they are of another run, or "
            "the settings were edited"
        )


def _pair(kind: type[Pretrained] | None, found: Mapping[Role, _Found]) -> SmoothedPair:
    """The pair of a noisy model and its denoiser.

    Raises ValueError for networks that were trained for different smoothing or image sizes.
    """
    noisy, denoiser = (found[role] for role in PAIR)
    named = f"{noisy.run.path} and {denoiser.run.path}"
    noise, other = ((one.settings.noise, one.settings.image_size) for one in (noisy, denoiser))
    smoothing, size = noise
    if noise != other or smoothing is None or size is None:
        raise ValueError(f"{named} do not fit together: {noise} and {other}")
    records = [one.network.record for one in (noisy, denoiser) if one.network.record is not None]
    digests = {record.data_sha256 for record in records} - {None}
    if len(digests) > 1 or len({record.data for record in records}) > 1:
        LOG.warning("%s were trained on different images", named)
    pair_kind = kind if kind is not None and issubclass(kind, SmoothedPair) else SmoothedPair
    return pair_kind(noisy.network, denoiser.network, smoothing, size).eval()
