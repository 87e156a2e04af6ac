"""Models from folders: a pair, a plain model beside it, or a single model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import get_args

import torch
from torch import Tensor

from .config import Role
from .nn import PixelCNNpp
from .nn.weights import weights_digest
from .pair import SmoothedPair
from .pretrained import find
from .pretrained import names as packaged_names
from .runs import RunFolder, runs_of_pair
from .sampling.cached import Sampler
from .sampling.output import DrawPart
from .sampling.request import Progress, Request
from .saved_pairs import is_saved_pair

# Images that a process draws at a time: enough to fill the device, few enough to lie in memory.
CHUNK = {"cpu": 256, "cuda": 4096}
EXPECTED = (
    "name a saved pair, or the run folders of a noisy model and of its denoiser, and perhaps that "
    "of a plain model"
)


@dataclass(frozen=True)
class Models:
    """Trained models in evaluation mode, in the order of the roles, and their runs, if any.

    smoothed: the pair of the noisy model and its denoiser; None for a single model.
    """

    networks: Mapping[Role, PixelCNNpp]
    smoothed: SmoothedPair | None
    image_size: tuple[int, int]
    runs: Mapping[Role, RunFolder]

    @property
    def pair(self) -> SmoothedPair:
        """The pair. Raises ValueError for a single model."""
        if self.smoothed is None:
            (run,) = self.runs.values()
            raise ValueError(f"{run.path} is a single model: {EXPECTED}")
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
    def n_classes(self) -> int:
        """Classes of the models that have some, 0 where none has."""
        return max(network.config.condition_size for network in self.networks.values())

    @property
    def clean_noise(self) -> float:
        """The noise on the target that the denoiser was trained with; 0 where no run tells it."""
        run = self.runs.get("denoiser")
        return run.read_config()[0].clean_noise if run else 0.0

    @property
    def device(self) -> torch.device:
        """Where the networks lie."""
        return next(iter(self.networks.values())).head.bias.device

    def to(self, device: torch.device | str) -> Models:
        """These models, moved to `device`."""
        for network in self.networks.values():
            network.to(device)
        return self

    def digests(self) -> dict[Role, str]:
        """`weights_digest` of each network."""
        return {role: weights_digest(network) for role, network in self.networks.items()}

    def drawer(self, request: Request, sampler: Sampler) -> DrawPart:
        """A function that draws parts of a request from the pair, or from the single model.

        The weights are those of the first part. Raises ValueError for a pair beside a plain model.
        """
        if self.smoothed is not None and self.plain is not None:
            raise ValueError(f"one model draws at a time, got {', '.join(self.networks)}")
        pair = self.smoothed
        drawer = None if pair is None else pair.drawer(request.levels)
        network = next(iter(self.networks.values()))

        def draw(part: Request, progress: Progress) -> Tensor:
            if part.known is not None:
                part = replace(part, known=part.known.to(self.device))
            if drawer is not None:
                return drawer.draw(part, sampler, progress)
            return sampler.draw(network, part, self.image_size, progress=progress)

        return draw

    @property
    def chunk(self) -> int:
        """Images that a process draws at a time."""
        return CHUNK[self.device.type]


def load_models(folders: Sequence[Path]) -> Models:
    """Read a pair and perhaps a plain model, or a single model that can draw, onto the CPU.

    folders: a saved pair, or the run folders of a noisy model and of its denoiser, in any order,
    or a name or folder of both (see `find_models`); beside either the run folder of a plain model.
    Or the run of a noisy or a plain model alone.
    Raises FileNotFoundError or ValueError, naming the folder, for anything else.
    """
    runs: dict[Role, RunFolder] = {}
    pair: SmoothedPair | None = None
    for run in map(RunFolder, find_models(folders)):
        if is_saved_pair(run.path):
            if pair is not None:
                raise ValueError(f"{EXPECTED}; got two saved pairs")
            pair = SmoothedPair.from_pretrained(run.path)
            continue
        role = run.read_config()[0].role
        if role in runs:
            raise ValueError(f"{runs[role].path} and {run.path} are both runs of the role {role}")
        runs[role] = run
    runs = {role: runs[role] for role in get_args(Role) if role in runs}
    of_a_pair = {"noisy", "denoiser"} & runs.keys()
    unexpected = ValueError(f"{EXPECTED}; got {', '.join(map(str, folders)) or 'nothing'}")
    if pair is not None:
        if of_a_pair:
            raise unexpected
    elif len(of_a_pair) == 2:
        pair = SmoothedPair.from_runs(runs["noisy"].path, runs["denoiser"].path)
    elif list(runs) == ["denoiser"]:
        raise ValueError(
            f"{runs['denoiser'].path} is a denoiser: name the run of its noisy model too"
        )
    elif len(runs) != 1:
        raise unexpected
    return _with_single(pair, runs)


def _with_single(pair: SmoothedPair | None, runs: Mapping[Role, RunFolder]) -> Models:
    """The models of a pair and of the one run that is not of it. Raises for sizes that differ."""
    networks: dict[Role, PixelCNNpp] = {}
    if pair is not None:
        networks = {"noisy": pair.noisy, "denoiser": pair.denoiser}
    size = None if pair is None else pair.image_size
    for role in [role for role in runs if role not in networks]:
        networks[role], _, own = runs[role].load_model()
        if size not in (None, own):
            raise ValueError(
                f"the {role} model of {runs[role].path} is for images of {own}, the pair for {size}"
            )
        size = own
    assert size is not None  # there is a pair or a run
    return Models(networks, pair, size, runs)


def find_models(names: Sequence[Path]) -> list[Path]:
    """Saved pairs and run folders behind what a user names.

    A name of the package's own models, and a folder with the runs `noisy` and `denoiser` in it,
    stand for these two runs. Raises FileNotFoundError for what is not there.
    """
    found: list[Path] = []
    for folder in map(find, names):
        runs = None if is_saved_pair(folder) else runs_of_pair(folder)
        found += runs or [folder]
    return found


def is_model(path: Path) -> bool:
    """Whether `path` names models: a run folder, a saved pair, or what stands for two runs."""
    if not path.exists():
        return str(path) in packaged_names()
    return is_saved_pair(path) or RunFolder(path).config.is_file() or runs_of_pair(path) is not None
