"""The slope of a network's log-density."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.func import functional_call

from ..config import Score
from .pixelcnnpp import PixelCNNpp


def score_of(
    model: PixelCNNpp, x: Tensor, score: Score = "full", label: Tensor | None = None
) -> Tensor:
    """The gradient of log p(x) with respect to x (B, C, H, W): same shape, nats per unit of x.

    label: for a model with classes, as in its forward.
    """
    with torch.enable_grad():
        x = x.detach().requires_grad_(True)
        if score == "full":
            # Frozen: the gradients of the weights would cost a third of all.
            frozen = {name: weight.detach() for name, weight in model.named_parameters()}
            params = functional_call(model, frozen, (x,), {"label": label})
        else:
            with torch.no_grad():
                params = model(x, label=label)
        (gradient,) = torch.autograd.grad(model.log_prob_given(x, params).sum(), x)
    return gradient
