"""The class of an image given its known pixels (docs/math.md, section 4)."""

from __future__ import annotations

import torch
from torch import Tensor

from ..config import Classes
from ..nn import PixelCNNpp
from ..nn.condition import log_prior, zero_label
from ..nn.weights import in_evaluation
from ..philox import to_uniform
from .known import KnownPixels
from .request import Request

# Images of a forward pass.
BATCH = 64


def draw_classes(
    network: PixelCNNpp,
    request: Request,
    known: KnownPixels,
    classes: Classes,
    context: Tensor | None = None,
) -> Tensor:
    """Draw the class of each image from p(class | its known pixels), by its number in the request.

    Exact where the known pixels come first in raster order: by Bayes' rule, from a pass of the
    network over their rows for each class. Other images get a label of zeros if the network was
    trained with label dropout, else a class of the prior. known: as the network sees them.
    Returns (count,) int64, or (count, n_classes) where some labels are zeros.
    """
    words = request.class_words(network.device)
    log_joint = log_known(network, known, classes, context)
    log_joint += log_prior(classes, network.device)
    limits = log_joint.softmax(1).cumsum(1)[:, :-1]
    drawn = (to_uniform(words)[:, None] >= limits).sum(1)
    pixels = known.mask.flatten(1)
    is_prefix = (pixels[:, 1:] <= pixels[:, :-1]).all(1)
    if bool(is_prefix.all()):
        return drawn
    if not classes.hidden_labels:
        return torch.where(is_prefix, drawn, request.prior_classes(classes, network.device))
    labels = zero_label(len(drawn), classes.number, network.head.bias)
    labels[is_prefix, drawn[is_prefix]] = 1
    return labels


@torch.no_grad()
def log_known(
    network: PixelCNNpp, known: KnownPixels, classes: Classes, context: Tensor | None = None
) -> Tensor:
    """log p(known pixels | class), of pixels that come first: (count, n_classes) float64, nats."""
    network, (count, height, _) = in_evaluation(network), known.mask.shape
    result = torch.zeros(count, classes.number, dtype=torch.float64, device=network.device)
    rows = int(known.mask.any(2).sum(1).amax()) if count else 0
    # Pixels depend on those before them only, but on the whole context.
    rows = -(-rows // 4) * 4 if context is None else height
    for start in range(0, count if rows else 0, BATCH):
        part = slice(start, start + BATCH)
        x = known.images[part, :, :rows].to(network.dtype)
        seen = None if context is None else context[part].to(network.dtype)
        for number in range(classes.number):
            label = torch.full((len(x),), number, device=network.device)
            nats = network.log_prob_of_pixels(x, network(x, seen, label))
            result[part, number] = (
                torch.where(known.mask[part, :rows], nats, 0).double().sum((1, 2))
            )
    return result
