"""Parameters of a model as views of one buffer, so that one operation updates all of them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import cached_property

import torch
from torch import Tensor, nn

ALIGNMENT = 32  # elements, 128 bytes: what kernels that read vectors ask of an address


class FlatParameters:
    """Moves parameters, all float32 on one device, into a buffer, in the order of their names.

    Between them lie zeros, which an update that maps zeros to zeros leaves. Those with four
    dimensions become channels_last.
    """

    def __init__(self, parameters: Mapping[str, nn.Parameter]) -> None:
        self.parameters = dict(parameters)
        self.offsets: dict[str, int] = {}
        size = 0
        for name, parameter in parameters.items():
            self.offsets[name] = size
            size += slot(parameter.numel())
        like = next(iter(parameters.values()), torch.empty(0))
        self.values = torch.zeros(size, dtype=torch.float32, device=like.device)
        for parameter in parameters.values():
            if parameter.ndim == 4:
                parameter.data = parameter.data.to(memory_format=torch.channels_last)
        for name, view in self.views(self.values).items():
            view.copy_(self.parameters[name].detach())
            self.parameters[name].data = view

    def views(self, buffer: Tensor, names: Iterable[str] | None = None) -> dict[str, Tensor]:
        """The parts of a buffer of this layout by parameters' names, by default all, in their
        shapes."""
        parameters = self.parameters
        return {
            name: buffer.as_strided(
                parameters[name].shape, parameters[name].stride(), self.offsets[name]
            )
            for name in names or parameters
        }

    @cached_property
    def gradient(self) -> Tensor:
        """The gradients of all parameters, as `gather_gradients` left them."""
        return torch.zeros_like(self.values)

    @cached_property
    def _targets(self) -> list[Tensor]:
        """The gradients in the order of memory: torch copies lists at once if no strides differ."""
        return [
            self.gradient[start : start + parameter.numel()]
            for start, parameter in zip(
                self.offsets.values(), self.parameters.values(), strict=True
            )
        ]

    @torch.no_grad()
    def gather_gradients(self) -> Tensor:
        """Move the parameters' gradients into `gradient`, which this returns."""
        gradients = [in_memory_order(p.grad, p) for p in self.parameters.values()]
        torch._foreach_copy_(self._targets, gradients)
        for parameter in self.parameters.values():
            parameter.grad = None
        return self.gradient


def slot(elements: int) -> int:
    """The elements that a parameter takes in a buffer, with the zeros after it."""
    return -(-elements // ALIGNMENT) * ALIGNMENT


def in_memory_order(gradient: Tensor | None, parameter: Tensor) -> Tensor:
    """The elements of a gradient in the memory order of its parameter; zeros of None."""
    if gradient is None:
        return parameter.new_zeros(parameter.numel())
    return (gradient.permute(0, 2, 3, 1) if gradient.ndim == 4 else gradient).reshape(-1)
