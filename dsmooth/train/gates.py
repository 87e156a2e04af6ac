"""Whether the gated resnets keep A and G for the backward, or compute them again."""

from __future__ import annotations

from collections.abc import Iterable
from typing import cast

import torch
from torch import nn

from ..config import KeepGates, TrainConfig
from ..distributed import as_rank_0_has_it
from ..nn import PixelCNNpp
from ..nn.layers import GatedResnet
from .ranks import share_of_batch

# Of the device's free memory before a run begins, what they may take.
MEMORY_FRACTION = 0.25


def gate_bytes(config: TrainConfig, height: int, width: int) -> int:
    """Memory of all A and G of what a process computes at once, of images of this size."""
    with torch.device("meta"):
        model = PixelCNNpp(config.model)
    filters = sum(
        2 * block.conv_in.weight_v.shape[0] / 4**level
        for level, blocks in _levels(model)
        for block in blocks.modules()
        if isinstance(block, GatedResnet)
    )
    rows = 2 * height if config.model.conditioning == "stack" else height
    images = share_of_batch(config)[1] // config.accumulate
    return int(filters * images * rows * width * (2 if config.precision == "bfloat16" else 4))


def _levels(model: PixelCNNpp) -> Iterable[tuple[int, nn.Module]]:
    """Modules, and how often the images they see were halved."""
    yield from zip((0, 1, 2), cast("Iterable[nn.Module]", model.up), strict=True)
    yield from zip((2, 1, 0), cast("Iterable[nn.Module]", model.down), strict=True)
    if model.encoder is not None:
        yield 0, model.encoder


def resolve_keep_gates(
    config: TrainConfig, device: torch.device, size: tuple[int, int]
) -> KeepGates:
    """Replace "auto": "on" where the Triton kernels compute and a quarter of the free memory holds
    A and G of images of this size (height, width)."""
    if config.keep_gates != "auto":
        return config.keep_gates
    if device.type != "cuda":
        return "off"
    free, _ = torch.cuda.mem_get_info(device)
    fits = gate_bytes(config, *size) <= MEMORY_FRACTION * free
    return "on" if as_rank_0_has_it(fits) else "off"


def set_keep_gates(model: PixelCNNpp, keep: bool) -> None:
    """Have all gated resnets of a model keep A and G, or not."""
    for module in model.modules():
        if isinstance(module, GatedResnet):
            module.keep_gates = keep
