"""Networks by their weights: from files, in evaluation mode.

A file's tensors decide the memory, not the settings beside it.
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor, nn

from ..config import ModelConfig
from ..files import check_tensors, read_tensors
from .pixelcnnpp import PixelCNNpp

Network = TypeVar("Network", bound=nn.Module)


def load_network(config: ModelConfig, path: Path) -> PixelCNNpp:
    """The network of `config` with weights as `files.weight_bytes` has them, in evaluation mode.

    Raises FileNotFoundError for a missing file and ValueError for one that is damaged or belongs
    to a network of another shape.
    """
    tensors, _ = read_tensors(path)
    network = outline(config, tensors, str(path))
    own = network.state_dict()
    check_tensors(own, tensors, str(path))
    # Not copied into an emptied network: to empty one, torch imports sympy.
    copies = {name: tensor.to(own[name].dtype, copy=True) for name, tensor in tensors.items()}
    network.load_state_dict(copies, assign=True)
    return network.eval()


# Tensors that one more gated resnet per block, or one more in the encoder, adds.
TENSORS_PER_RESNET, TENSORS_PER_CONTEXT_LAYER = 99, 6


def outline(config: ModelConfig, tensors: Mapping[str, Tensor], source: str) -> PixelCNNpp:
    """A network without memory, on the device "meta".

    Raises ValueError, naming `source`, where `tensors` are too few for its layers.
    """
    least = TENSORS_PER_RESNET * config.n_resnet
    if config.conditioning == "concat":
        least += TENSORS_PER_CONTEXT_LAYER * config.context_layers
    if len(tensors) < least:
        raise ValueError(
            f"{source} holds a model of another shape: it has {len(tensors)} tensors, "
            f"n_resnet = {config.n_resnet} takes {least} and more"
        )
    with torch.device("meta"):
        return PixelCNNpp(config)


def in_evaluation(model: Network) -> Network:
    """The model or the pair, without dropout: itself, or a copy that shares its weights.

    A model in training mode stays so, for another thread may go on training it.
    """
    if not any(module.training for module in model.modules()):
        return model
    shared = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    return copy.deepcopy(model, shared).eval()


def weights_digest(model: nn.Module) -> str:
    """SHA-256 of a model's weights as float32, in the order of their names."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
