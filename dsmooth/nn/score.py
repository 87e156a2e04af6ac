"""The gradient of a network's log-density by its input."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.func import functional_call

from ..config import Score
from ..functional.dispatch import forward_mode_obstacle
from .pixelcnnpp import PixelCNNpp


class _LogProb(nn.Module):
    """A module whose forward is the model's log_prob, which a subclass may override."""

    def __init__(self, model: PixelCNNpp) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor, label: Tensor | None) -> Tensor:
        return self.model.log_prob(x, label=label)


def score_of(
    model: PixelCNNpp, x: Tensor, score: Score = "full", label: Tensor | None = None
) -> Tensor:
    """The gradient of log p(x) with respect to x (B, C, H, W): same shape, nats per unit of x.

    label: for a model with classes, as in its forward. Has no derivative itself: raises
    NotImplementedError inside a forward-mode derivative.
    """
    if forward_mode_obstacle():
        raise NotImplementedError("the slope of a log-density has no forward-mode derivative")
    with torch.inference_mode(False), torch.enable_grad():
        x = x.detach().clone().requires_grad_(True)  # that of inference mode takes no gradient
        if score == "full":
            # Frozen: the gradients of the weights would cost a third of all.
            whole = _LogProb(model)
            frozen = {name: weight.detach() for name, weight in whole.named_parameters()}
            log_p = functional_call(whole, frozen, (x, label))
        else:
            with torch.no_grad():
                params = model(x, label=label)
            log_p = model.log_prob_given(x, params)
        (gradient,) = torch.autograd.grad(log_p.sum(), x)
    return gradient
