"""Read trained networks by name, folder or Hub id, into one `Loaded`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, get_args

import torch

from ..config import Classes, Role
from ..nn import PixelCNNpp
from ..nn.pretrained import Pretrained
from ..nn.weights import weights_digest
from ..pair import SmoothedPair
from ..progress import LOG
from ..smoothing import Smoothing
from .folders import PAIR, find, runs_in
from .runs import CONFIG_FILE, RunFolder

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
    _pair: SmoothedPair | None = None

    @property
    def pair(self) -> SmoothedPair:
        """The pair. Raises ValueError for a single model."""
        if self._pair is None:
            raise ValueError(f"this is a single {self._first.role} model: {EXPECTED_MODELS}")
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
                "the network does not say how large its images are: save it again with its "
                "image_size = (H, W)"
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


def load(
    *names: str | Path,
    device: str | torch.device | None = None,
    dtype: torch.dtype | None = None,
    kind: type[Pretrained] = Pretrained,
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
    networks: dict[Role, PixelCNNpp] = {}
    noises: dict[Role, Smoothing | None] = {}
    runs: dict[Role, RunFolder] = {}
    made = kind if issubclass(kind, PixelCNNpp) else PixelCNNpp
    for run in [run for name in names for run in _runs_of(find(name, **hub))]:
        found, settings = run.read_weights(made)
        if both := networks.keys() & found:
            raise ValueError(
                f"{run.path} holds a second {' and '.join(both)} model; {EXPECTED_MODELS}"
            )
        networks |= found
        noises |= dict.fromkeys(found, settings.noise)
        runs |= dict.fromkeys(found, run) if run.config.exists() else {}
    networks = {role: networks[role] for role in get_args(Role) if role in networks}
    named = ", ".join(map(str, names))
    if not networks or (len(networks) > 1 and not networks.keys() >= {*PAIR}):
        raise ValueError(f"{EXPECTED_MODELS}; got {named or 'nothing'}")
    for network in networks.values():
        network.to(device=device, dtype=dtype)
    pair = None if len(networks) == 1 else _pair(kind, networks, noises, named)
    return Loaded(networks, runs, noises[next(iter(networks))], pair)


def weights_with(name: str, role: Role) -> RunFolder:
    """The folder in `name` whose weights have a network of a role, by what they say.

    Raises ValueError if none has, and FileNotFoundError or ValueError as `load` does.
    """
    runs = {run: run.read_settings().networks for run in _runs_of(find(name))}
    for run, networks in runs.items():
        if role in networks:
            return run
    roles = " and a ".join(role for networks in runs.values() for role in networks)
    raise ValueError(f"{name} has a {roles} model, not a {role} one to begin with")


def _pair(
    kind: type[Pretrained],
    networks: Mapping[Role, PixelCNNpp],
    noises: Mapping[Role, Smoothing | None],
    named: str,
) -> SmoothedPair:
    """The pair of a noisy model and its denoiser.

    Raises ValueError for networks that were trained for different smoothing or image sizes, the
    size of a plain model too.
    """
    smoothing, size = noises["noisy"], networks["noisy"].image_size
    sizes = {network.image_size for network in networks.values()}
    if smoothing is None or size is None or smoothing != noises["denoiser"] or len(sizes) > 1:
        raise ValueError(
            f"{named} do not fit together: they are for noise {smoothing} and "
            f"{noises['denoiser']}, and images of {' and '.join(map(str, sizes))}"
        )
    records = [record for role in PAIR if (record := networks[role].record) is not None]
    digests = {record.data_sha256 for record in records} - {None}
    if len(digests) > 1 or len({record.data for record in records}) > 1:
        LOG.warning("%s were trained on different images", named)
    made = kind if issubclass(kind, SmoothedPair) else SmoothedPair
    return made(networks["noisy"], networks["denoiser"], smoothing, size).eval()


def _runs_of(folder: Path) -> list[RunFolder]:
    if runs := runs_in(folder):
        return runs
    inner = [config.parent.name for config in sorted(folder.glob(f"*/{CONFIG_FILE}"))]
    hint = f", which has the runs {', '.join(inner)}" if inner else ""
    raise FileNotFoundError(f"there is no network in {folder}{hint}: {EXPECTED_MODELS}")
