"""Networks in memory, and where they come from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TypeVar

import torch

from ..config import Classes, Role
from ..nn import PixelCNNpp
from ..nn.pretrained import Pretrained
from ..nn.weights import weights_digest
from ..pair import SmoothedPair
from ..progress import LOG
from ..runs import RunFolder, TrainingRecord
from ..smoothing import Smoothing

P = TypeVar("P", bound=Pretrained)
EXPECTED_MODELS = (
    "give a saved pair, or the run folders of a noisy model and of its denoiser, and optionally "
    "that of a plain model"
)


@dataclass(frozen=True)
class Loaded:
    """Networks in memory, in evaluation mode, and the folders that they were read from.

    networks: in the order of the roles. smoothed: the pair, if there is a noisy model with its
    denoiser. smoothing: that the first network was trained for. folders, runs: in the order given;
    runs has those that were read from run folders.
    """

    networks: Mapping[Role, PixelCNNpp]
    smoothed: SmoothedPair | None
    smoothing: Smoothing | None = None
    folders: Mapping[Role, Path] = field(default_factory=dict)
    runs: Mapping[Role, RunFolder] = field(default_factory=dict)

    @property
    def pair(self) -> SmoothedPair:
        """The pair. Raises ValueError for a single model."""
        if self.smoothed is None:
            raise ValueError(f"{self.source} is a single model: {EXPECTED_MODELS}")
        return self.smoothed

    @property
    def noisy(self) -> PixelCNNpp:
        """The noisy model. Raises ValueError if there is none."""
        return self._network("noisy")

    @property
    def denoiser(self) -> PixelCNNpp:
        """The denoiser. Raises ValueError if there is none."""
        return self._network("denoiser")

    @property
    def plain(self) -> PixelCNNpp | None:
        """The plain model, if there is one."""
        return self.networks.get("plain")

    @property
    def model(self) -> SmoothedPair | PixelCNNpp:
        """The pair or the single model, which draws."""
        if self.smoothed is None:
            return self.first
        if self.plain is not None:
            raise ValueError(f"one model draws at a time, got {', '.join(self.networks)}")
        return self.smoothed

    @property
    def first(self) -> PixelCNNpp:
        """The noisy model, or the only network."""
        return next(iter(self.networks.values()))

    @property
    def source(self) -> str:
        """The first folder, for messages."""
        return str(next(iter(self.folders.values()), "this"))

    @property
    def image_size(self) -> tuple[int, int]:
        """(H, W). Raises ValueError where the folder does not state it."""
        if self.first.image_size is None:
            raise ValueError(
                f"{self.source} does not say how large its images are: save the network again with "
                "its image_size = (H, W)"
            )
        return self.first.image_size

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(C, H, W) of the images."""
        return (self.first.config.image_channels, *self.image_size)

    @property
    def classes(self) -> Classes | None:
        """The classes of the models that have some."""
        known = (network.config.classes for network in self.networks.values())
        return next(filter(None, known), None)

    @property
    def clean_noise(self) -> float:
        """Noise on the target that the denoiser was trained with; 0 where no run states it."""
        run = self.runs.get("denoiser")
        return run.read_config()[0].clean_noise if run else 0.0

    @property
    def device(self) -> torch.device:
        """Device of the networks."""
        return self.first.device

    def checked(self) -> Loaded:
        """The same. Raises ValueError unless it is a pair, with or without a plain model, or one
        model that can draw."""
        if [*self.networks] == ["denoiser"]:
            raise ValueError(f"{self.source} is a denoiser: give the run of its noisy model too")
        if self.smoothed is None and len(self.networks) > 1:
            raise ValueError(f"{EXPECTED_MODELS}; got {', '.join(map(str, self.folders.values()))}")
        size, plain = self.image_size, self.plain
        if plain is not None and plain.image_size != size:
            raise ValueError(
                f"the plain model of {self.folders['plain']} is for images of {plain.image_size}, "
                f"the pair for {size}"
            )
        return self

    def record(self, role: Role) -> TrainingRecord | None:
        """The training record of a network's weights, read now; None if it is unknown."""
        return training_record(self.networks[role])

    def to(self, device: torch.device | str | None, dtype: torch.dtype | None = None) -> Loaded:
        """The same, with the networks moved to `device` and cast to `dtype`."""
        for network in self.networks.values():
            network.to(device=device, dtype=dtype)
        return self

    def digests(self) -> dict[Role, str]:
        """`weights_digest` of each network."""
        return {role: weights_digest(network) for role, network in self.networks.items()}

    def identity(self) -> Mapping[str, object]:
        """The settings that decide images in addition to the weights, as JSON."""
        settings = {str(role): asdict(network.config) for role, network in self.networks.items()}
        if self.smoothed is not None:
            smoothing = self.smoothed.smoothing
            settings["smoothing"] = {"kind": smoothing.kind, "scale": smoothing.scale}
        return settings

    def of(self, *roles: Role) -> Loaded:
        """Some of the networks, and the pair if its noisy model is among them."""
        pair = self.smoothed if "noisy" in roles else None
        return replace(self, networks={role: self.networks[role] for role in roles}, smoothed=pair)

    def of_kind(self, kind: type[P]) -> P:
        """The pair or the only network, of a class. Raises ValueError for the other one."""
        # mypy does not narrow a type variable by issubclass.
        if issubclass(kind, SmoothedPair):
            return self.pair  # type: ignore[return-value]
        if self.smoothed is not None:
            raise ValueError(
                f"{self.source} holds a pair, which dsmooth.SmoothedPair.from_pretrained reads"
            )
        return self.first  # type: ignore[return-value]

    def _network(self, role: Role) -> PixelCNNpp:
        if role not in self.networks:
            roles = " and a ".join(self.networks)
            raise ValueError(f"{self.source} has a {roles} model, not a {role} one")
        return self.networks[role]


def training_record(network: PixelCNNpp) -> TrainingRecord | None:
    """The record of the training that a network's weights come from, read now."""
    try:
        return None if network.record is None else network.record()
    except (OSError, ValueError) as error:  # the folder was removed meanwhile
        LOG.warning("the training record of the weights cannot be read: %s", error)
        return None
