"""Changes of a network that samplers must respect: hooks, subclasses, replaced methods."""

from __future__ import annotations

from functools import cache

from torch import nn

from .layers import Conv1x1, GatedResnet, WeightNormConv
from .pixelcnnpp import Block, ContextEncoder, HeadHidden, PixelCNNpp

LAYERS = (
    PixelCNNpp,
    Block,
    ContextEncoder,
    HeadHidden,
    GatedResnet,
    WeightNormConv,
    Conv1x1,
    nn.ModuleList,
)


def changed_layer(model: PixelCNNpp) -> str | None:
    """A sentence about the first layer that may differ from the library's class; None without
    one."""
    layers: list[nn.Module] = [model]
    for layer in layers:  # grows; named_modules takes as long as drawing some pixels
        if (change := change_of(layer)) is not None:
            name = next(name for name, module in model.named_modules() if module is layer)
            return f"{name or 'the model'} {change}"
        layers += filter(None, layer._modules.values())
    return None


def change_of(layer: nn.Module) -> str | None:
    """The reason why a layer may compute something other than the library's layer, or None."""
    if (kind := type(layer)) not in LAYERS:
        return f"is a {kind.__name__}, not the library's own"
    if layer._forward_hooks or layer._forward_pre_hooks:
        return "has forward hooks"
    if _methods_of(kind).isdisjoint(vars(layer)):
        return None
    name = next(name for name in vars(layer) if name in _methods_of(kind))
    return f"has a method {name} of its own"


@cache
def _methods_of(kind: type) -> frozenset[str]:
    return frozenset(name for name in dir(kind) if callable(getattr(kind, name, None)))
