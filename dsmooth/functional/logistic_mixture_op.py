"""The log-likelihoods of the extension and of Triton as one op, whose arguments are checked."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from .. import _extension
from ..pixels import Likelihood
from .dispatch import Backend, Impl, Needs, Tensors, native_obstacle, register_op, triton_obstacle

Grads = tuple[Tensor | None, ...]


class MixtureOperands(NamedTuple):
    x: Tensor  # (B, C, H, W)
    params: Tensor  # (B, P, H, W)


class MixtureCall(NamedTuple):
    likelihood: Likelihood
    atoms: bool
    smoothing_scale: float
    impl: Impl
    needs_x: bool  # whether a backward that needs this gradient may follow
    needs_params: bool


def widened(x: Tensor, params: Tensor) -> tuple[Tensor, Tensor]:
    """Both in their common dtype, at least float32: sums of a loss reach 1e5."""
    dtype = torch.promote_types(torch.promote_types(x.dtype, params.dtype), torch.float32)
    return x.to(dtype), params.to(dtype)


class Native:
    """The extension. It saves sums and their maxima, (B, 4, H, W); saving the gradients themselves,
    as large as params, would take longer."""

    def obstacle(self, operands: MixtureOperands) -> str | None:
        return native_obstacle(operands.x.device.type)

    def cast(self, operands: MixtureOperands) -> MixtureOperands:
        return MixtureOperands(*widened(*operands))

    def results(self, operands: MixtureOperands, call: MixtureCall) -> Tensors:
        """log_prob (B, H, W) in the dtype of x, the sums, and an empty tensor."""
        x, (batch, _, *size) = operands.x, operands.x.shape
        return x.new_empty(batch, *size), x.new_empty(batch, 4, *size), x.new_empty(0)

    def forward(self, operands: MixtureOperands, call: MixtureCall, results: Tensors) -> None:
        log_prob, sums, _ = results
        mixture = call.likelihood, call.atoms, call.smoothing_scale
        _extension.extension().logistic_mixture(
            *operands, sums, *mixture, torch.get_num_threads(), log_prob=log_prob
        )

    def gradients(self, operands: MixtureOperands, call: MixtureCall, needs: Needs) -> Grads:
        pairs = zip(operands, needs, strict=True)
        return tuple([t.new_empty(t.shape) if need else None for t, need in pairs])

    def backward(
        self,
        operands: MixtureOperands,
        call: MixtureCall,
        saved: Tensors,
        grad: Tensor,
        grads: Grads,
    ) -> None:
        mixture = call.likelihood, call.atoms, call.smoothing_scale
        _extension.extension().logistic_mixture(
            *operands, saved[0], *mixture, torch.get_num_threads(),
            grad=grad.contiguous(),  # a sum's has strides of 0, which vector loads cannot read
            grad_x=grads[0], grad_params=grads[1],
        )  # fmt: skip


class Triton:
    """One kernel. It saves the gradients of the sum of log_prob: computing the components again
    would double the arithmetic, which is the bottleneck in bfloat16."""

    def obstacle(self, operands: MixtureOperands) -> str | None:
        x, params = operands
        return triton_obstacle(x.device, x.dtype, params.dtype, matmul=False)

    def cast(self, operands: MixtureOperands) -> MixtureOperands:
        return operands

    def results(self, operands: MixtureOperands, call: MixtureCall) -> Tensors:
        """log_prob (B, H, W) in float32, and the gradients, empty if not needed."""
        x, (batch, _, *size) = operands.x, operands.x.shape
        grads = self.gradients(operands, call, (call.needs_x, call.needs_params))
        pairs = zip(operands, grads, strict=True)
        units = [t.new_empty(0) if grad is None else grad for t, grad in pairs]
        return x.new_empty((batch, *size), dtype=torch.float32), *units

    def forward(self, operands: MixtureOperands, call: MixtureCall, results: Tensors) -> None:
        from ..kernels import logistic_mixture as kernels

        log_prob, unit_x, unit_params = results
        units = unit_x if call.needs_x else None, unit_params if call.needs_params else None
        mixture = call.likelihood, call.atoms, call.smoothing_scale
        kernels.log_prob(*operands, log_prob, *units, *mixture)

    def gradients(self, operands: MixtureOperands, call: MixtureCall, needs: Needs) -> Grads:
        """Contiguous; of channels_last parameters channels_last."""
        params, formats = operands.params, [torch.contiguous_format, torch.channels_last]
        if params.is_contiguous() or not params.is_contiguous(memory_format=torch.channels_last):
            formats[1] = torch.contiguous_format
        rows = zip(operands, formats, needs, strict=True)
        return tuple([torch.empty_like(t, memory_format=f) if n else None for t, f, n in rows])

    def backward(
        self,
        operands: MixtureOperands,
        call: MixtureCall,
        saved: Tensors,
        grad: Tensor,
        grads: Grads,
    ) -> None:
        # torch multiplies in float32 and rounds each product once.
        for unit, out in zip(saved, grads, strict=True):
            if out is not None:
                torch.mul(unit, grad[:, None], out=out)


BACKENDS: Mapping[Impl, Backend[MixtureOperands, MixtureCall, Grads]]
BACKENDS = {"native": Native(), "triton": Triton()}
forward_op, backward_op = register_op("logistic_mixture", MixtureOperands, MixtureCall, 3, BACKENDS)
