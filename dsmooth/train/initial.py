"""The weights that a new run begins with, instead of random ones."""

from __future__ import annotations

from typing import cast

from ..config import Role, SmoothingKind, TrainConfig
from ..nn import PixelCNNpp
from ..pretrained import find
from ..runs import RunFolder, runs_of_pair
from ..saved_pairs import is_saved_pair, read_pair


def load_initial(config: TrainConfig) -> PixelCNNpp:
    """The network of `config.role` in the run or pair `config.init`, whose shape is `config`'s.

    Raises FileNotFoundError or ValueError, naming `config.init`, where there is none.
    """
    network, _, _ = read_initial(str(config.init), config.role)
    return network


def read_initial(source: str, role: Role) -> tuple[PixelCNNpp, SmoothingKind, float]:
    """The network of a role in a run, a saved pair or a folder with runs of a pair, on the CPU.

    Also the kind and scale of the smoothing that it was trained with.
    Raises FileNotFoundError or ValueError, naming `source`, where there is none.
    """
    folder = find(source)
    if is_saved_pair(folder):
        pair = read_pair(folder)
        if role == "plain":
            raise ValueError(f"{source} is a pair, which has no plain model to begin with")
        network = pair.noisy if role == "noisy" else pair.denoiser
        return network, cast(SmoothingKind, pair.smoothing.kind), pair.smoothing.scale
    inside = RunFolder(folder / role)
    run = inside if runs_of_pair(folder) and inside.is_run() else RunFolder(folder)
    network, config, _ = run.load_model()
    if config.role != role:
        raise ValueError(f"{source} is the run of a {config.role} model, not of a {role} one")
    return network, config.smoothing, config.scale
