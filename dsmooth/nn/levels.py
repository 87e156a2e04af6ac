"""A network of several noise levels at one of them."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from .pixelcnnpp import PixelCNNpp

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
