"""Changes of a network that samplers must respect: hooks, subclasses, replaced methods."""

from __future__ import annotations

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
    """A sentence about the first layer that may compute something other than the library's layer;
    None without one."""
    for path, layer in model.named_modules():
        name, kind = path or "the model", type(layer)
        if kind not in LAYERS:
            return f"{name} is a {kind.__name__}, not the library's own"
        if layer._forward_hooks or layer._forward_pre_hooks:
            return f"{name} has forward hooks"
        for attribute in vars(layer):
            if callable(getattr(kind, attribute, None)):
                return f"{name} has a method {attribute} of its own"
    return None
