"""The gradient of a network's log-density by its input."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.func import functional_call

from ..functional.dispatch import forward_mode_obstacle
from .pixelcnnpp import PixelCNNpp


def gradient_of(
    model: PixelCNNpp, x: Tensor, label: Tensor | None = None, guidance: float = 0.0
) -> Tensor:
    """The gradient of log p(x) with respect to x (B, C, H, W): same shape, nats per unit of x.

    label: for a model with classes, as in its forward. guidance: extrapolates the gradient from
    that without a class through that with it. Has no derivative itself: raises NotImplementedError
    inside a forward-mode derivative.
    """
    if guidance and label is not None:
        no_class = x.new_zeros(len(x), model.config.condition_size)
        without, of_class = (gradient_of(model, x, each) for each in (no_class, label))
        return torch.lerp(without, of_class, 1 + guidance)
    if forward_mode_obstacle():
        raise NotImplementedError("the slope of a log-density has no forward-mode derivative")
    with torch.inference_mode(False), torch.enable_grad():
        x = x.detach().clone().requires_grad_(True)  # a tensor of inference mode takes no gradient
        # Frozen: the gradients of the weights would cost a third of all. Those of inference mode
        # cannot be kept for the gradient of x.
        frozen = {
            name: weight.clone() if weight.is_inference() else weight.detach()
            for name, weight in model.named_parameters()
        }
        params = functional_call(model, frozen, (x,), {"label": label})
        (gradient,) = torch.autograd.grad(model.log_prob_given(x, params).sum(), x)
    return gradient
