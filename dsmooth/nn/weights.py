"""Networks by their weights: from files, in evaluation mode, at one noise level.

A file's tensors decide the memory, not the settings beside it.
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from ..config import ModelConfig
from ..files import check_tensors, read_tensors
from .pixelcnnpp import PixelCNNpp


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


def in_evaluation(model: PixelCNNpp) -> PixelCNNpp:
    """The model, without dropout: itself, or a copy that shares its weights.

    A model in training mode stays so, for another thread may go on training it.
    """
    if not model.training:
        return model
    shared = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    return copy.deepcopy(model, shared).eval()


BIAS, PROJECTION = "conv_out.bias", "condition_weight"


@torch.no_grad()
def at_level(model: PixelCNNpp, level: int) -> PixelCNNpp:
    """The network for noise of `model.config.noise_levels[level]` alone, in evaluation mode.

    The result has no noise_levels. The projection of a fixed level is a constant: it is added to
    the biases. The other weights are shared with `model`.
    Raises ValueError for a level that the model does not have.
    """
    config, n_classes = model.config, model.config.condition_size
    if not 0 <= level < len(config.noise_levels):
        raise ValueError(
            f"level must lie in 0 .. {len(config.noise_levels) - 1}, got {level}"
            if config.noise_levels
            else "the model has no noise_levels"
        )
    with torch.device("meta"):
        fixed = PixelCNNpp(replace(config, noise_levels=()))
    weights: dict[str, Tensor] = dict(model.state_dict())
    for name in [name for name in weights if name.endswith(PROJECTION)]:
        projection = weights.pop(name)
        bias = name.removesuffix(PROJECTION) + BIAS
        weights[bias] = weights[bias] + projection[:, n_classes + level]
        if n_classes:
            weights[name] = projection[:, :n_classes].contiguous()
    fixed.load_state_dict(weights, assign=True)
    return fixed.eval()


def weights_digest(model: nn.Module) -> str:
    """SHA-256 of a model's weights as float32, in the order of their names."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
