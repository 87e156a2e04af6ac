"""Networks in memory, and where they come from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field

import torch

from ..config import Classes, Role
from ..nn import PixelCNNpp
from ..nn.weights import weights_digest
from ..pair import SmoothedPair
from ..runs import RunFolder
from ..smoothing import Smoothing

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
