"""Models by their names: a pair, a plain model beside it, or a single model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from ._extension import cuda_obstacle
from .config import Precision, Role, TrainConfig
from .nn import PixelCNNpp
from .nn.weights import weights_digest
from .pair import SmoothedPair
from .pretrained import SavedNetwork, resolve
from .pretrained.resolver import read_pair
from .runs import RunFolder
from .sampling.cached import draw
from .sampling.request import Progress, Request

# Images that a process draws at a time: enough to fill the device, few enough to lie in memory.
CHUNK = {"cpu": 256, "cuda": 4096}
EXPECTED = (
    "name a saved pair, or the run folders of a noisy model and of its denoiser, and perhaps that "
    "of a plain model"
)


@dataclass(frozen=True)
class Models:
    """Trained models in evaluation mode: a pair, a plain model beside it, or a single model."""

    networks: Mapping[Role, PixelCNNpp]
    smoothed: SmoothedPair | None
    image_size: tuple[int, int]
    saved: tuple[SavedNetwork, ...]  # as they were named

    @property
    def pair(self) -> SmoothedPair:
        """The pair. Raises ValueError for a single model."""
        if self.smoothed is None:
            raise ValueError(f"{self.saved[0].folder} is a single model: {EXPECTED}")
        return self.smoothed

    @property
    def plain(self) -> PixelCNNpp | None:
        """The plain model, if there is one."""
        return self.networks.get("plain")

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(C, H, W) of the images."""
        channels = next(iter(self.networks.values())).config.image_channels
        return (channels, *self.image_size)

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the classes, empty if they are unknown."""
        named = (network.config.class_names for network in self.networks.values())
        return next(filter(None, named), ())

    @property
    def n_classes(self) -> int:
        """Classes of the models that have some, 0 where none has."""
        return max(network.config.condition_size for network in self.networks.values())

    @property
    def runs(self) -> dict[Role, RunFolder]:
        """The runs of the networks that have one."""
        return {one.role: RunFolder(one.folder) for one in self.saved if one.training is not None}

    @property
    def settings(self) -> dict[Role, TrainConfig]:
        """The settings of the runs, the first named first."""
        return {one.role: one.training for one in self.saved if one.training is not None}

    @property
    def clean_noise(self) -> float:
        """Noise on the target that the denoiser was trained with; 0 where no run tells it."""
        settings = self.settings.get("denoiser")
        return settings.clean_noise if settings else 0.0

    @property
    def device(self) -> torch.device:
        """Device of the networks."""
        return next(iter(self.networks.values())).head.bias.device

    def to(self, device: torch.device | str) -> Models:
        """These models, moved to `device`."""
        for network in self.networks.values():
            network.to(device)
        return self

    def digests(self) -> dict[Role, str]:
        """`weights_digest` of each network."""
        return {role: weights_digest(network) for role, network in self.networks.items()}

    def identity(self) -> dict[str, Any]:
        """The settings that decide images beside the weights, as JSON."""
        settings: dict[str, Any] = {}
        for role, network in self.networks.items():
            settings[role] = asdict(network.config)
        if self.smoothed is not None:
            smoothing = self.smoothed.smoothing
            settings["smoothing"] = {"kind": smoothing.kind, "scale": smoothing.scale}
        return settings

    def draw(
        self, request: Request, progress: Progress | None = None, precision: Precision = "auto"
    ) -> Tensor:
        """The images of a request, from the pair or from the single model."""
        if self.smoothed is None:
            network = next(iter(self.networks.values()))
            return draw(network, request, self.image_size, None, progress, precision)
        if self.plain is not None:
            raise ValueError(f"one model draws at a time, got {', '.join(self.networks)}")
        return self.smoothed.draw(request, progress, precision)

    def of(self, *roles: Role) -> Models:
        """Some of the networks, and the pair if its noisy model is among them."""
        pair = self.smoothed if "noisy" in roles else None
        return replace(self, networks={role: self.networks[role] for role in roles}, smoothed=pair)

    @property
    def chunk(self) -> int:
        """Images that a process draws at a time."""
        return CHUNK["cpu" if self.device.type == "cpu" or cuda_obstacle() else "cuda"]


def class_number(label: str | int, names: Sequence[str]) -> int | Literal["each"]:
    """The number of a class by its number or name; "each" stays. ValueError for another."""
    if label == "each":
        return "each"
    if isinstance(label, int) or label.isdecimal():
        return int(label)
    if label not in names:
        known = f" or one of {', '.join(names)}" if names else ""
        raise ValueError(f"`label` must be each, a number{known}, got {label}")
    return names.index(label)


def load_models(names: Sequence[str | Path]) -> Models:
    """Read a pair and perhaps a plain model, or a single model that can draw, onto the CPU.

    names: as in `resolve`, in any order.
    """
    saved = [network for name in names for network in resolve(name)]
    by_role: dict[Role, SavedNetwork] = {}
    for network in saved:
        other = by_role.setdefault(network.role, network)
        if other is not network:
            raise ValueError(
                f"{other.folder} and {network.folder} both hold a {network.role} model; {EXPECTED}"
            )
    pair: SmoothedPair | None = None
    networks: dict[Role, PixelCNNpp] = {}
    if {"noisy", "denoiser"} <= by_role.keys():
        pair = read_pair(SmoothedPair, [by_role["noisy"], by_role["denoiser"]])
        networks = {"noisy": pair.noisy, "denoiser": pair.denoiser}
    elif list(by_role) == ["denoiser"]:
        raise ValueError(f"{saved[0].folder} is a denoiser: name the run of its noisy model too")
    elif len(by_role) != 1:
        raise ValueError(f"{EXPECTED}; got {', '.join(map(str, names)) or 'nothing'}")
    size = saved[0].settings.image_size if pair is None else pair.image_size
    if size is None:
        raise ValueError(
            f"{saved[0].folder} does not say how large its images are: save the network again with "
            "its image_size = (H, W)"
        )
    for role in by_role.keys() - networks.keys():  # a single model, or the plain one
        single = by_role[role]
        if size != (its := single.settings.image_size):
            raise ValueError(
                f"the {role} model of {single.folder} is for images of {its}, the pair for {size}"
            )
        networks[role] = single.load()
    return Models(networks, pair, size, tuple(saved))
