"""The weights that a new run begins with, instead of random ones."""

from __future__ import annotations

from ..config import Role, SmoothingKind, TrainConfig
from ..nn import PixelCNNpp
from ..pretrained import resolve


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
    found = resolve(source)
    run = found[0].run
    if role == "plain" and len(found) == 2 and run is not None:
        found = resolve(run.path.with_name("plain"))
    network = next((one for one in found if one.role == role), None)
    if network is None and len(found) == 2:
        raise ValueError(f"{source} is a pair, which has no plain model to begin with")
    if network is None:
        raise ValueError(f"{source} is the run of a {found[0].role} model, not of a {role} one")
    return network.load(), network.smoothing, network.scale
