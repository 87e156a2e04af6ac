"""Models by their names: a pair, a plain model beside it, or a single model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal, get_args

import torch
from torch import Tensor

from ._extension import cuda_obstacle
from .config import Precision, Role
from .fields import Json
from .nn import PixelCNNpp
from .nn.weights import weights_digest
from .pair import SmoothedPair
from .pretrained import SavedNetwork, pair_of, resolve
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
    def first(self) -> PixelCNNpp:
        """The noisy model, or the plain one alone."""
        return next(iter(self.networks.values()))

    @property
    def image_size(self) -> tuple[int, int]:
        """(H, W) of the images."""
        assert self.first.image_size is not None  # or they were refused
        return self.first.image_size

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(C, H, W) of the images."""
        return (self.first.config.image_channels, *self.image_size)

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
        """The runs of the networks that have one, the first named first."""
        return {one.role: one.run for one in self.saved if one.run is not None}

    @property
    def clean_noise(self) -> float:
        """Noise on the target that the denoiser was trained with; 0 where no run tells it."""
        run = self.runs.get("denoiser")
        return run.read_config()[0].clean_noise if run else 0.0

    @property
    def device(self) -> torch.device:
        """Device of the networks."""
        return self.first.head.bias.device

    @property
    def chunk(self) -> int:
        """Images that a process draws at a time."""
        return CHUNK["cpu" if self.device.type == "cpu" or cuda_obstacle() else "cuda"]

    def to(self, device: torch.device | str) -> Models:
        """These models, moved to `device`."""
        for network in self.networks.values():
            network.to(device)
        return self

    def digests(self) -> dict[Role, str]:
        """`weights_digest` of each network."""
        return {role: weights_digest(network) for role, network in self.networks.items()}

    def identity(self) -> Json:
        """The settings that decide images beside the weights."""
        settings: Json = {role: asdict(each.config) for role, each in self.networks.items()}
        if self.smoothed is not None:
            smoothing = self.smoothed.smoothing
            settings["smoothing"] = {"kind": smoothing.kind, "scale": smoothing.scale}
        return settings

    def draw(
        self, request: Request, progress: Progress | None = None, precision: Precision = "auto"
    ) -> Tensor:
        """The images of a request, from the pair or from the single model."""
        if self.smoothed is None:
            return draw(self.first, request, self.image_size, None, progress, precision)
        if self.plain is not None:
            raise ValueError(f"one model draws at a time, got {', '.join(self.networks)}")
        return self.smoothed.draw(request, progress, precision)

    def of(self, *roles: Role) -> Models:
        """Some of the networks, and the pair if its noisy model is among them."""
        pair = self.smoothed if "noisy" in roles else None
        return replace(self, networks={role: self.networks[role] for role in roles}, smoothed=pair)


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
    for each in saved:
        other = by_role.setdefault(each.role, each)
        if other is not each:
            raise ValueError(
                f"{other.folder} and {each.folder} both hold a {each.role} model; {EXPECTED}"
            )
    pair: SmoothedPair | None = None
    if {"noisy", "denoiser"} <= by_role.keys():
        pair = pair_of(SmoothedPair, [by_role["noisy"], by_role["denoiser"]])
    elif list(by_role) == ["denoiser"]:
        raise ValueError(f"{saved[0].folder} is a denoiser: name the run of its noisy model too")
    elif len(by_role) != 1:
        raise ValueError(f"{EXPECTED}; got {', '.join(map(str, names)) or 'nothing'}")
    networks = {role: by_role[role].network for role in get_args(Role) if role in by_role}
    models = Models(networks, pair, tuple(saved))
    size = models.first.image_size
    if size is None:
        raise ValueError(
            f"{saved[0].folder} does not say how large its images are: save the network again with "
            "its image_size = (H, W)"
        )
    if models.plain is not None and models.plain.image_size != size:
        raise ValueError(
            f"the plain model of {by_role['plain'].folder} is for images of "
            f"{models.plain.image_size}, the pair for {size}"
        )
    return models
