"""The pixels that a pixel's distribution can depend on: one masked stack against two streams.

A stack of masked convolutions reaches rows above only through pixels at most as far to the right as
up, so it has a blind spot. PixelCNN++ has one stream for the rows above and one for the row, and
none (the paper's Figure 10). Both are shown by the gradients of small untrained networks.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from ..config import ModelConfig
from ..machine import torch_seed
from ..nn import PixelCNNpp
from ..results import ReceptiveField, ReceptiveFields

FILTERS = 4


def masked_stack(layers: int) -> nn.Sequential:
    """The naive network: 3 x 3 convolutions that see only the past, (B, 1, H, W) -> (B, 4, H, W).

    The first is blind for the pixel itself (mask A), the others are not (mask B).
    Source: van den Oord et al., Pixel recurrent neural networks (2016).
    """
    network = nn.Sequential()
    for i in range(layers):
        conv = nn.Conv2d(FILTERS if i else 1, FILTERS, 3, padding=1)
        centre = float(i > 0)
        conv.weight.data *= torch.tensor([[1.0, 1.0, 1.0], [1.0, centre, 0.0], [0.0, 0.0, 0.0]])
        network.append(conv).append(nn.Tanh())
    return network


def influence(network: Callable[[Tensor], Tensor], size: int, row: int, column: int) -> Tensor:
    """|d output(row, column) / dx|, averaged over outputs: (size, size) float64.

    network: (1, 1, size, size) -> (1, P, size, size), in float64. An input without a path to the
    output has a gradient of exactly 0.
    """
    x = torch.zeros(1, 1, size, size, dtype=torch.float64, requires_grad=True)
    outputs = network(x)[0, :, row, column]
    gradients = [torch.autograd.grad(o, x, retain_graph=True)[0][0, 0] for o in outputs]
    return torch.stack(gradients).abs().mean(0)


def causal(size: int, row: int, column: int) -> Tensor:
    """The pixels before (row, column) in raster order: (size, size) bool."""
    order = torch.arange(size * size).view(size, size)
    return order < row * size + column


def receptive_fields(size: int = 16) -> ReceptiveFields:
    """The dependence of the middle pixel of a size x size image in a "masked-stack", as deep as the
    image is wide, and in "two-streams"."""
    row = column = size // 2
    config = ModelConfig(n_filters=FILTERS, n_resnet=3, n_mix=1, dropout=0.0)
    with torch_seed(0):
        networks = {"masked-stack": masked_stack(size), "two-streams": PixelCNNpp(config)}
    before, results = causal(size, row, column), {}
    for name, network in networks.items():
        gradient = influence(network.double().eval(), size, row, column)
        reached = gradient > 0
        results[name] = ReceptiveField(
            reached=int((reached & before).sum()),
            blind_spot=int((~reached & before).sum()),
            leaks=int((reached & ~before).sum()),
            influence=tuple(map(tuple, gradient.tolist())),
        )
    return ReceptiveFields(size, (row, column), int(before.sum()), results)
