"""Gradients of a network's log-density with respect to its inputs."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.func import functional_call

from ..functional.dispatch import forward_mode_obstacle
from .pixelcnnpp import PixelCNNpp


def input_gradient(model: PixelCNNpp, x: Tensor, labels: Tensor | None = None) -> Tensor:
    """The gradient of log p(x) with respect to x (B, C, H, W): same shape, nats per unit of x.

    Raises NotImplementedError under forward-mode differentiation, which is not supported.
    """
    return _gradient(model, "x", {"x": x, "vector": model.vectors(labels)})


def class_gradient(
    model: PixelCNNpp, vector: Tensor, x: Tensor, context: Tensor | None = None
) -> Tensor:
    """The gradient of log p(x) with respect to class vectors (B, n_classes): same shape, nats."""
    inputs = {"x": x, "context": context, "vector": vector}
    return _gradient(model, "vector", inputs)


class _LogProb(nn.Module):
    """log p(x) of a model, whose weights are the parameters of this module."""

    def __init__(self, model: PixelCNNpp) -> None:
        super().__init__()
        self.model = model

    def forward(
        self, x: Tensor, context: Tensor | None = None, vector: Tensor | None = None
    ) -> Tensor:
        """With the vectors of classes, which may be of no single class."""
        vector = None if vector is None else vector.to(self.model.dtype)
        return self.model.nats(x, context, vector)


def _gradient(model: PixelCNNpp, name: str, inputs: Mapping[str, Tensor | None]) -> Tensor:
    """The gradient of log p(x) with respect to one of the inputs of `_LogProb`."""
    if forward_mode_obstacle():
        raise NotImplementedError("the gradient of a log-density has no forward-mode derivative")
    with torch.inference_mode(False), torch.enable_grad():
        # Autograd can neither differentiate nor save an inference tensor.
        copies = {key: t.detach().clone() for key, t in inputs.items() if t is not None}
        variable = copies[name].requires_grad_(True)
        log_prob = _LogProb(model)
        # Frozen: gradients of the weights would take a third of the time.
        frozen = {
            key: weight.clone() if weight.is_inference() else weight.detach()
            for key, weight in log_prob.named_parameters()
        }
        nats = functional_call(log_prob, frozen, (), copies)
        (gradient,) = torch.autograd.grad(nats.sum(), variable)
    return gradient
