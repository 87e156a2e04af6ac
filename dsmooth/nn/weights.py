"""Networks and their weights: built from tensors, in evaluation mode, changed layers, digests."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor, nn

from ..config import ModelConfig
from .layers import change_of
from .pixelcnnpp import PixelCNNpp

Network = TypeVar("Network", bound=nn.Module)


def check_tensors(
    expected: Mapping[str, Tensor],
    tensors: Mapping[str, Tensor],
    source: str,
    what: str = "a model of another shape",
) -> None:
    """Raise ValueError, naming `source`, if keys, shapes or kinds of dtypes differ."""
    different = sorted(expected.keys() ^ tensors.keys()) or sorted(
        name
        for name, tensor in expected.items()
        if tensor.shape != tensors[name].shape
        or tensor.is_floating_point() != tensors[name].is_floating_point()
    )
    if different:
        raise ValueError(
            f"{source} holds {what}: {len(different)} tensors differ, first {different[0]!r}"
        )


def load_network(
    config: ModelConfig,
    tensors: Mapping[str, Tensor],
    source: Path,
    kind: type[PixelCNNpp] = PixelCNNpp,
) -> PixelCNNpp:
    """The network of `config` with these weights, in evaluation mode, on the CPU.

    Raises ValueError, naming the source, for weights of another shape.
    """
    with torch.device("meta"):
        network = kind(config)
    outlines = network.state_dict()
    check_tensors(outlines, tensors, str(source))
    # Assigned, not copied into an empty network: torch would import sympy for that.
    copies = {name: tensor.to(outlines[name].dtype, copy=True) for name, tensor in tensors.items()}
    network.load_state_dict(copies, assign=True)
    return network.eval()


def check_weights(network: PixelCNNpp) -> None:
    """Raise ValueError for a network that cannot be loaded again from its weights and settings."""
    try:
        with torch.device("meta"):
            expected = type(network)(network.config).state_dict()
    except TypeError:  # a subclass with additional arguments
        return
    check_tensors(
        expected,
        network.state_dict(),
        "the network",
        "weights that its settings do not describe (torch.nn.utils.parametrize."
        "remove_parametrizations merges parametrized ones)",
    )


def in_evaluation(model: Network) -> Network:
    """The model or pair in evaluation mode: itself, or a copy that shares its weights and hooks."""
    if not any(module.training for module in model.modules()):
        return model
    # A hook may be a method of an object that has weights, or keeps what it sees.
    hooks = (
        hook
        for module in model.modules()
        for table in (module._forward_hooks, module._forward_pre_hooks)
        for hook in table.values()
    )
    shared = {id(kept): kept for kept in (*model.parameters(), *model.buffers(), *hooks)}
    return copy.deepcopy(model, shared).eval()


@torch.no_grad()  # as images are drawn
def changed_layer(model: PixelCNNpp) -> str | None:
    """A sentence about the first layer of which `change_of` says something, or None."""
    for path, layer in model.named_modules():
        if change := change_of(layer):
            return f"{path or 'the model'} {change}"
    return None


def weights_digest(model: nn.Module) -> str:
    """SHA-256 of a model's weights as float32, in the order of their names."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
