"""Optimisers of a run, Adam alone or Muon for the kernels beside it, and the average of weights.

Under weight norm, w = g v / ||v||, a kernel v has a direction and no length. Muon (Jordan et al.,
2024) turns all filters of a kernel by one angle, whatever the size of their gradient.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Sequence
from typing import cast

import torch
from torch import Tensor, nn

from ..config import TrainConfig
from ..nn import PixelCNNpp
from ..nn.layers import WeightNormConv

MOMENTUM = 0.9
ADAM_MOMENTS = ("exp_avg", "exp_avg_sq")

# Odd polynomials a x + b x^3 + c x^5, one after the other: together they bring every singular value
# between 1e-3 and 1 near 1. The first five of Polar Express (Amsel et al., 2025, arXiv:2505.16932).
POLAR_EXPRESS = (
    (8.28721201814563, -23.595886519098837, 17.300387312530933),
    (4.107059111542203, -2.9478499167379106, 0.5448431082926601),
    (3.9486908534822946, -2.908902115962949, 0.5518191394370137),
    (3.3184196573706015, -2.488488024314874, 0.51004894012372),
    (2.300652019954817, -1.6689039845747493, 0.4188073119525673),
)
# Keeps the largest singular value below 1 despite rounding: the polynomials are made for that.
MARGIN = 1.01


def polar_factor(x: Tensor) -> Tensor:
    """(N, D, C) with the singular vectors of x and singular values near 1; zero for zero."""
    if x.shape[-2] > x.shape[-1]:
        return polar_factor(x.mT).mT
    norm = torch.linalg.vector_norm(x, dim=(-2, -1), keepdim=True)
    x = x / (MARGIN * norm).clamp(min=torch.finfo(x.dtype).tiny)
    # x is multiplied once, at the end: all polynomials are of its (D, D) Gram matrix.
    gram = x @ x.mT
    product = None
    for a, b, c in POLAR_EXPRESS:
        factor = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        factor.diagonal(dim1=-2, dim2=-1).add_(a)
        product = factor if product is None else factor @ product
        gram = factor @ gram @ factor
    return x if product is None else product @ x


def filters(v: Tensor, transposed: bool) -> Tensor:
    """A view of a kernel with one row per filter: (D, kh, kw, C)."""
    return v.permute(1, 2, 3, 0) if transposed else v.permute(0, 2, 3, 1)


class Muon:
    """Momentum on a model's kernels, its polar factor as a step, filters kept at length 1.

    The kernels are the directions `weight_v` of layers with weight norm, unless they are frozen;
    `rest` has all other parameters by name, for an optimiser beside this one. A step adds to each
    filter a vector whose length is the angle, root mean square over the filters of a kernel. It
    reads nothing back, and computes kernels of one shape together.
    """

    def __init__(self, model: nn.Module) -> None:
        self.rest = dict(model.named_parameters())
        by_shape: dict[tuple[int, int], dict[str, WeightNormConv]] = {}
        for name, conv in model.named_modules():
            if not isinstance(conv, WeightNormConv) or not conv.weight_v.requires_grad:
                continue
            del self.rest[f"{name}.weight_v"]
            rows = filters(conv.weight_v.detach(), conv.transposed)
            rows /= torch.linalg.vector_norm(rows, dim=(1, 2, 3), keepdim=True)
            by_shape.setdefault((rows.shape[0], rows[0].numel()), {})[name] = conv
        # The kernels of one shape and their average gradients, (N, D, kh kw C); and each of these
        # by the name of its layer, a view.
        self.groups: list[tuple[list[WeightNormConv], Tensor]] = []
        self.averages: dict[str, Tensor] = {}
        for shape, convs in by_shape.items():
            average = next(iter(convs.values())).weight_v.new_zeros(len(convs), *shape)
            self.groups.append(([*convs.values()], average))
            self.averages.update(zip(convs, average, strict=True))

    @torch.no_grad()
    def step(self, angle: Tensor | float) -> None:
        """Turn all kernels by their gradients; angle: radians, a tensor in float32."""
        for convs, average in self.groups:
            v = _stack((conv.weight_v for conv in convs), convs)
            gradient = _stack((conv.weight_v.grad for conv in convs), convs)
            average.lerp_(gradient, 1 - MOMENTUM)
            update = polar_factor(gradient.lerp_(average, MOMENTUM))  # Nesterov's momentum
            n_filters, size = update.shape[1:]
            v -= update * (angle * math.sqrt(max(1.0, n_filters / size)))
            v /= torch.linalg.vector_norm(v, dim=2, keepdim=True)
            views = [filters(conv.weight_v, conv.transposed) for conv in convs]
            torch._foreach_copy_(
                views, [new.view_as(view) for new, view in zip(v, views, strict=True)]
            )


def _stack(tensors: Iterable[Tensor | None], convs: Sequence[WeightNormConv]) -> Tensor:
    """Copy tensors of the kernels' shape, with one row per filter: (N, D, kh kw C)."""
    pairs = zip(cast("Iterable[Tensor]", tensors), convs, strict=True)
    return torch.stack([filters(x, conv.transposed).flatten(1) for x, conv in pairs])


class Optimizer:
    """The optimiser that `config.optimizer` names, for all parameters of a model."""

    def __init__(self, model: nn.Module, config: TrainConfig, device: torch.device) -> None:
        self.muon = Muon(model) if config.optimizer == "muon" else None
        self.parameters = self.muon.rest if self.muon else dict(model.named_parameters())
        self.adam = torch.optim.Adam(
            self.parameters.values(),
            lr=config.learning_rate,
            betas=config.betas,
            fused=True,
            capturable=device.type == "cuda",
        )
        # A tensor, which a step can set: float64 as Python has it, but float32 for Adam on CUDA.
        exact = torch.float32 if device.type == "cuda" else torch.float64
        self.rate = torch.zeros((), dtype=exact, device=device)
        self.adam.param_groups[0]["lr"] = self.rate
        for parameter in self.parameters.values():  # as Adam's first step would
            moments = {key: torch.zeros_like(parameter) for key in ADAM_MOMENTS}
            self.adam.state[parameter] = {"step": parameter.new_zeros(()), **moments}

    def step(self, rate: Tensor, angle: Tensor) -> None:
        """One update from the gradients; rate of Adam and angle of Muon: float64, no dimensions."""
        self.rate.copy_(rate)
        self.adam.step()
        if self.muon:
            self.muon.step(angle.float())

    def tensors(self) -> dict[str, Tensor]:
        """The moments that a resumed run needs, by name."""
        tensors = {
            f"adam.{key}.{name}": self.adam.state[parameter][key]
            for name, parameter in self.parameters.items()
            for key in ADAM_MOMENTS
        }
        averages = self.muon.averages if self.muon else {}
        return tensors | {f"muon.{name}": average for name, average in averages.items()}

    def count(self, steps: int) -> None:
        """Go on as after `steps` steps."""
        for state in self.adam.state.values():
            state["step"].fill_(steps)


class EMA:
    """A second copy of a model that follows its weights with decay min(max_decay, (1+n)/(10+n)).

    n counts updates from 0. Start it after the data-dependent init; evaluate and sample with
    `model`, which is in evaluation mode and takes no gradient.
    """

    def __init__(self, model: PixelCNNpp, max_decay: float) -> None:
        self.model = copy.deepcopy(model).eval().requires_grad_(False)
        self.average: list[Tensor] = list(self.model.parameters())
        self.max_decay = max_decay

    @torch.no_grad()
    def update(self, model: PixelCNNpp, updates: Tensor) -> None:
        """Move the average towards the weights of `model`; updates: how many came before."""
        n = updates.double()
        decay = ((1 + n) / (10 + n)).clamp(max=self.max_decay)
        weight = (1 - decay).to(self.average[0].dtype)
        weights = [weight] * len(self.average)
        torch._foreach_lerp_(self.average, list(model.parameters()), weights)
