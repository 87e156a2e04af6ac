"""A draw of images: what a caller asks for (`Choices`), and what is computed (`Draw`)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Protocol, TypedDict

import torch
from torch import Tensor

from ..config import Method, ModelConfig
from ..nn.condition import NO_CLASS, ClassLabel
from ..smoothing import Smoothing


class DrawChoices(TypedDict, total=False):
    """The `Choices` without known pixels."""

    seed: int | None
    generator: torch.Generator | None
    first_index: int
    temperature: float
    label: ClassLabel | None
    guidance: float


class Choices(DrawChoices, total=False):
    """Keyword arguments of every sampler. With the weights they determine the images.

    seed: 0 by default. None draws a seed, which a warning of the logger `dsmooth` reports.
    generator: a torch.Generator that gives the seed instead, a new one at each call. first_index:
    index of the first image in the stream of `seed`, 0 by default. temperature: > 0, 1 by default;
    divides the logits and multiplies the scales.

    label: for models with classes. A number or a name is the class of all images. "each" gives
    image i the class i modulo the number of classes. "prior" draws the class of each image by the
    frequencies of the classes in the training images (uniform if unknown), as a function of the
    seed and the image's index. A tensor (n,) int64, or a list of numbers or names, has the class of
    every image, -1 for none. guidance: >= 0, 0 by default; for models with classes that were
    trained with label_dropout. A pixel's parameters p0 without a class and p1 with the class become
    p0 + (1 + guidance) (p1 - p0) (docs/math.md, section 8).

    known: (n or 1, C, H, W); its pixels are kept where mask, bool (n or 1, H, W) or (H, W), is
    True. Every other pixel is drawn given all pixels before it, with its own noise. Known pixels do
    not influence the pixels before them: unless they come first in raster order, the distribution
    may differ much from the model's conditional distribution.
    """

    known: Tensor | None
    mask: Tensor | None


@dataclass(frozen=True, eq=False)
class KnownPixels:
    """Images (n, C, H, W), 0 at unknown pixels; mask (n, H, W) bool, True at known pixels."""

    images: Tensor
    mask: Tensor

    @property
    def values(self) -> Tensor:
        """The known pixels: (number, C)."""
        return self.images.movedim(1, -1)[self.mask]

    def keep(self, x: Tensor) -> Tensor:
        """A contiguous copy of x (n, C, H, W) with the known pixels inserted."""
        return torch.where(self.mask[:, None], self.images.to(x.dtype), x).contiguous()


class Drawer(Protocol):
    """A network that draws: the cached sampler, forward passes, or a posterior mean.

    dtype: of its activations. image_dtype: of its images, and of a context.
    """

    config: ModelConfig
    device: torch.device
    dtype: torch.dtype
    image_dtype: torch.dtype

    def run(self, draw: Draw) -> Tensor:
        """The images (n, C, H, W) of a draw; `draw.x_tilde` is the context."""


@dataclass(frozen=True, eq=False)
class Draw:
    """Images with these indices of the stream of `seed`, as `resolve` makes it: nothing is left
    open, and all of it fits the models.

    shape: (C, H, W). labels: (n,) int64, -1 for no class; None for models without classes. x_tilde:
    given noisy images (n, C, H, W), or the context of a single network. smoothing: of a pair.
    noisy: draws x~, or the images of a single network; None if x~ is given. denoiser: draws x given
    x~; None where x~ is the result.
    """

    indices: range
    seed: int
    shape: tuple[int, int, int]
    method: Method
    temperature: float
    guidance: float
    labels: Tensor | None
    known: KnownPixels | None
    x_tilde: Tensor | None
    smoothing: Smoothing | None
    noisy: Drawer | None
    denoiser: Drawer | None

    @property
    def passes(self) -> list[Tensor | None]:
        """The labels of each pass of a network: guidance adds a pass without a class."""
        if not self.guidance or self.labels is None:
            return [self.labels]
        return [self.labels, torch.full_like(self.labels, NO_CLASS)]

    def part(self, part: range) -> Draw:
        """The draw of some of these images, by their numbers 0 .. n - 1."""
        # Views: a copy by numbers would wait for a GPU, and no CUDA graph could capture it.
        rows, known = slice(part.start, part.stop), self.known
        return replace(
            self,
            indices=self.indices[rows],
            labels=None if self.labels is None else self.labels[rows],
            known=known and KnownPixels(known.images[rows], known.mask[rows]),
            x_tilde=None if self.x_tilde is None else self.x_tilde[rows],
        )

    def seen_by(self, network: Drawer) -> Draw:
        """The draw for one network of a pair: no label or guidance if it has no classes."""
        return self if network.config.classes else replace(self, labels=None, guidance=0.0)
