"""Gradients of a network's log-density with respect to its inputs."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.func import functional_call

from ..functional.dispatch import forward_mode_obstacle
from .condition import zero_label
from .pixelcnnpp import PixelCNNpp


def input_gradient(
    model: PixelCNNpp, x: Tensor, label: Tensor | None = None, guidance: float = 0.0
) -> Tensor:
    """The gradient of log p(x) with respect to x (B, C, H, W): same shape, nats per unit of x.

    guidance: weight of the extrapolation from the gradient without a class through that with the
    label. Raises NotImplementedError under forward-mode differentiation, which is not supported.
    """
    if guidance and label is not None:
        no_class = zero_label(len(x), model.config.condition_size, x)
        unconditional, conditional = (input_gradient(model, x, y) for y in (no_class, label))
        return torch.lerp(unconditional, conditional, 1 + guidance)
    return _gradient(model, "x", {"x": x, "label": label})


def label_gradient(
    model: PixelCNNpp, label: Tensor, x: Tensor, context: Tensor | None = None
) -> Tensor:
    """The gradient of log p(x) with respect to soft classes (B, n_classes): same shape, nats."""
    return _gradient(model, "label", {"x": x, "context": context, "label": label})


def _gradient(model: PixelCNNpp, name: str, inputs: Mapping[str, Tensor | None]) -> Tensor:
    """The gradient of log p(x) with respect to the input `name` of the model's forward pass."""
    if forward_mode_obstacle():
        raise NotImplementedError("the gradient of a log-density has no forward-mode derivative")
    with torch.inference_mode(False), torch.enable_grad():
        # Autograd can neither differentiate nor save an inference tensor.
        copies = {key: t.detach().clone() for key, t in inputs.items() if t is not None}
        variable = copies[name].requires_grad_(True)
        # Frozen: gradients of the weights would take a third of the time.
        frozen = {
            key: weight.clone() if weight.is_inference() else weight.detach()
            for key, weight in model.named_parameters()
        }
        params = functional_call(model, frozen, (), copies)
        (gradient,) = torch.autograd.grad(model.log_prob_given(copies["x"], params).sum(), variable)
    return gradient
