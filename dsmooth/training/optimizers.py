"""Optimisers of a run: Adam, or Muon with Adam for what is not a kernel.

Under weight norm, w = g v / ||v||, a kernel v has a direction and no length. Muon (Jordan et al.,
2024) turns all filters of a kernel by one angle, whatever the size of their gradient. Weights,
gradients, moments and average are flat buffers, each updated by one operation.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ..config import TrainConfig
from ..nn.layers import WeightNormConv

ALIGNMENT = 32  # elements, 128 bytes: what kernels that read vectors ask of an address
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
# The squared norm of a matrix below which its polar factor shrinks to zero: it has no direction.
LEAST_SQUARE = 1e-30
# Gram matrices of one size are padded to the next larger size, and computed with those, if all of
# them then have at most this many elements cubed: less time than the launches that this saves.
LARGEST_PADDED = 2**20


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
        places = zip(self.offsets.values(), self.parameters.values(), strict=True)
        return [self.gradient[start : start + p.numel()] for start, p in places]

    @torch.no_grad()
    def gather_gradients(self) -> Tensor:
        """Move the parameters' gradients into `gradient`, by one launch, and return it.

        If they were parts of `gradient`, `backward` would add to each by a launch of its own.
        """
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


def polar_operator(gram: Tensor) -> Tensor:
    """P, of which P x has the singular vectors of x and singular values near 1; zero for zero.

    gram: x x^T, (N, D, D). Rows and columns of zeros change nothing in the others.
    """
    square = gram.diagonal(dim1=-2, dim2=-1).sum(-1)[:, None, None]
    scale = (MARGIN**2 * square).clamp(min=LEAST_SQUARE).rsqrt()
    gram = gram * scale.square()
    operator = None
    for i, (a, b, c) in enumerate(POLAR_EXPRESS):
        # The factor is a + powers.
        powers = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        if operator is None:
            operator = powers.clone()
            operator.diagonal(dim1=-2, dim2=-1).add_(a)
        else:
            operator = torch.baddbmm(operator, powers, operator, beta=a)
        if i + 1 < len(POLAR_EXPRESS):
            gram = torch.baddbmm(gram, powers, gram, beta=a)
            gram = torch.baddbmm(gram, gram, powers, beta=a)
    assert operator is not None
    return operator * scale


class Group(NamedTuple):
    """Kernels of one shape, neighbours in a flat buffer: each has D filters of kh kw C numbers."""

    n_filters: int
    size: int
    transposed: bool
    n_kernels: int
    offset: int

    @property
    def gram_size(self) -> int:
        return min(self.n_filters, self.size)

    def rows(self, buffer: Tensor) -> Tensor:
        """A view of these kernels in a flat buffer: (N, D, kh kw C), in some order of columns."""
        d, size = self.n_filters, self.size
        strides = (slot(d * size), 1, d) if self.transposed else (slot(d * size), size, 1)
        return buffer.as_strided((self.n_kernels, d, size), strides, self.offset)


class Grams:
    """Gram matrices of some groups, padded to one size: their polar factors are computed at once.

    matrices: (N, size, size), zero outside of the places. factors: of the angle, (N, 1, 1).
    """

    def __init__(self, groups: list[Group], like: Tensor) -> None:
        self.places: list[tuple[Group, tuple[slice, slice, slice]]] = []
        factors: list[float] = []
        for group in groups:
            rows = slice(group.gram_size)
            kernels = slice(len(factors), len(factors) + group.n_kernels)
            self.places.append((group, (kernels, rows, rows)))
            factors += [math.sqrt(max(1.0, group.n_filters / group.size))] * group.n_kernels
        size = max(group.gram_size for group in groups)
        self.matrices = like.new_zeros(len(factors), size, size)
        self.factors = like.new_tensor(factors)[:, None, None]


def padded_together(groups: list[Group]) -> list[list[Group]]:
    """The groups whose Gram matrices are padded to the size of the last ones."""
    parts: list[list[Group]] = []
    n = 0
    for group in sorted(groups, key=lambda group: group.gram_size):
        larger = parts and group.gram_size > parts[-1][-1].gram_size
        if not parts or (larger and n * group.gram_size**3 > LARGEST_PADDED):
            parts.append([])
            n = 0
        parts[-1].append(group)
        n += group.n_kernels
    return parts


def kernels_of(model: nn.Module) -> dict[str, WeightNormConv]:
    """Layers whose `weight_v` Muon trains, by its name, kernels of one shape next to each other.

    The directions of layers with weight norm, unless they are frozen.
    """
    by_shape: dict[object, dict[str, WeightNormConv]] = {}
    for name, conv in model.named_modules():
        if isinstance(conv, WeightNormConv) and conv.weight_v.requires_grad:
            by_shape.setdefault(shape_of(conv), {})[f"{name}.weight_v"] = conv
    return {name: conv for convs in by_shape.values() for name, conv in convs.items()}


def shape_of(conv: WeightNormConv) -> tuple[int, int, bool]:
    """The filters of a kernel, their numbers, and whether it is transposed."""
    n_filters = conv.weight_v.shape[1 if conv.transposed else 0]
    return n_filters, conv.weight_v.numel() // n_filters, conv.transposed


class FlatMuon:
    """Momentum on a model's kernels, its polar factor as a step, filters kept at length 1.

    `kernels`, from `kernels_of`, are adjacent in `flat`. A step adds to each filter a
    vector whose length is the angle, root mean square over the filters of a kernel. It reads
    nothing back, and computes kernels of one shape together.
    """

    def __init__(self, kernels: Mapping[str, WeightNormConv], flat: FlatParameters) -> None:
        self.flat, self.start = flat, flat.offsets[next(iter(kernels))]
        self.groups = []
        for shape, alike in itertools.groupby(kernels, lambda name: shape_of(kernels[name])):
            names = list(alike)
            self.groups.append(Group(*shape, len(names), flat.offsets[names[0]]))
        self.average = torch.zeros_like(flat.values)
        self.grams = [Grams(part, flat.values) for part in padded_together(self.groups)]
        for group in self.groups:
            rows = group.rows(flat.values)
            rows /= torch.linalg.vector_norm(rows, dim=2, keepdim=True)

    @torch.no_grad()
    def step(self, angle: Tensor | float) -> None:
        """Turn all kernels by `flat.gradient`, which is overwritten; angle: radians, float32."""
        gradient, average = self.flat.gradient[self.start :], self.average[self.start :]
        average.lerp_(gradient, 1 - MOMENTUM)
        gradient.lerp_(average, MOMENTUM)  # Nesterov's momentum
        for grams in self.grams:
            for group, place in grams.places:
                x = wide(group.rows(self.flat.gradient))
                torch.bmm(x, x.mT, out=grams.matrices[place])
            operators = polar_operator(grams.matrices) * (grams.factors * angle)
            for group, place in grams.places:
                buffers = self.flat.gradient, self.flat.values
                x, v = (wide(group.rows(buffer)) for buffer in buffers)
                v.baddbmm_(operators[place], x, alpha=-1)
        for group in self.groups:
            rows = group.rows(self.flat.values)
            rows /= torch.linalg.vector_norm(rows, dim=2, keepdim=True)


def wide(x: Tensor) -> Tensor:
    """x (N, D, C) or its transpose, with no more rows than columns."""
    return x.mT if x.shape[1] > x.shape[2] else x


class Optimizer:
    """The optimiser that `config.optimizer` names, for all parameters of a model.

    It moves them into `flat`, a buffer with Adam's first.
    """

    def __init__(self, model: nn.Module, config: TrainConfig, device: torch.device) -> None:
        named = dict(model.named_parameters())
        self.kernels = kernels_of(model) if config.optimizer == "muon" else {}
        self.by_adam = [name for name in named if name not in self.kernels]
        self.flat = FlatParameters({name: named[name] for name in (*self.by_adam, *self.kernels)})
        self.muon = FlatMuon(self.kernels, self.flat) if self.kernels else None
        end = self.muon.start if self.muon else len(self.flat.values)
        self.values = nn.Parameter(self.flat.values[:end])
        self.values.grad = self.flat.gradient[:end]
        self.adam = torch.optim.Adam(
            [self.values],
            lr=config.learning_rate,
            betas=config.betas,
            fused=True,
            capturable=device.type == "cuda",
        )
        # A tensor, which a step can set: float64 as Python has it, but float32 for Adam on CUDA.
        exact = torch.float32 if device.type == "cuda" else torch.float64
        self.rate = torch.zeros((), dtype=exact, device=device)
        self.adam.param_groups[0]["lr"] = self.rate
        self.state = self.adam.state[self.values]  # as Adam's first step would make it
        self.state["step"] = self.values.new_zeros(())
        self.state |= {key: torch.zeros_like(self.values) for key in ADAM_MOMENTS}

    def step(self, rate: Tensor, angle: Tensor) -> None:
        """One update by `flat.gradient`; rate of Adam and angle of Muon: without dimensions."""
        self.rate.copy_(rate)
        self.adam.step()
        if self.muon:
            self.muon.step(angle)

    def tensors(self) -> dict[str, Tensor]:
        """Views of the moments, by name: what a resumed run needs."""
        moments = {
            f"adam.{key}.{name}": view
            for key in ADAM_MOMENTS
            for name, view in self.flat.views(self.state[key], self.by_adam).items()
        }
        averages = self.flat.views(self.muon.average, self.kernels) if self.muon else {}
        return moments | {f"muon.{name}": average for name, average in averages.items()}
